"use strict";

/* the value of a CSS variable of the page, which follows light and dark */
function cssValue(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/* tables of class sortable: every heading sorts, missing values stay last */
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const rising = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => order(key(a), key(b), rising));
      table.tBodies[0].append(...rows);
    });
  });
}

function order(a, b, rising) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const numeric = !isNaN(a) && !isNaN(b);
  return (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true })) * (rising ? 1 : -1);
}

/* tables wider than the window: a hint above, and a fade at the edge that hides columns */
for (const box of document.querySelectorAll(".scroll")) {
  const hint = document.createElement("p");
  hint.className = "hint";
  hint.textContent = "Scroll sideways for more columns →";
  box.before(hint);
  const update = () => {
    const hiddenWidth = box.scrollWidth - box.clientWidth;
    hint.hidden = hiddenWidth <= 1;
    box.classList.toggle("more", box.scrollLeft < hiddenWidth - 1);
  };
  box.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(box);
  update();
}
