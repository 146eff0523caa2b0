const figures = JSON.parse(document.getElementById("figures").textContent);
const hidden = new Set();
/* on a touch screen, dragging scrolls the page instead of zooming a plot */
const hasPointer = matchMedia("(hover: hover)").matches;

/* plots take the colours of text and grid from the page */
function themed(layout) {
  const axis = (given = {}) => ({
    gridcolor: cssValue("--grid"), zerolinecolor: given.zeroline ? cssValue("--dim") : cssValue("--grid"),
    linecolor: cssValue("--line"), automargin: true, ...given,
  });
  return {
    ...layout,
    dragmode: hasPointer ? "zoom" : false,
    xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis), showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.documentElement).fontFamily, size: 12.5, color: cssValue("--ink") },
    hoverlabel: { bgcolor: cssValue("--raised"), bordercolor: cssValue("--line"), font: { color: cssValue("--ink") }, namelength: -1 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: cssValue("--dim"), activecolor: cssValue("--ink") },
    margin: { l: 60, r: 12, t: 14, b: 48 },
  };
}

/* the arm's name inside the label: Plotly's separate name box has the colour of the trace and may be unreadable */
const hover = ({ hovertemplate: text }) =>
  text && !text.includes("<extra>") ? { hovertemplate: `<b>%{fullData.name}</b><br>${text}<extra></extra>` } : {};
const shown = (figure) => figure.data.map((trace) => !hidden.has(trace.meta?.arm));
const changed = (figure) => withoutHiddenRows({ ...figure.layout, ...figure.variants[figure.variant ?? 0]?.layout });

/* in plots with one row per arm, hidden arms take no space; at least one row remains for the axis */
function withoutHiddenRows(layout) {
  const rows = layout.yaxis?.categoryarray;
  if (!rows) return layout;
  const left = rows.filter((arm) => !hidden.has(arm));
  const perRow = layout.meta.row_height;
  const height = layout.height - perRow * (rows.length - Math.max(1, left.length));
  return { ...layout, height, yaxis: { ...layout.yaxis, categoryarray: left } };
}

function draw(figure) {
  const data = figure.data.map((trace, index) => ({ ...trace, ...hover(trace), visible: shown(figure)[index] }));
  const variant = figure.variants[figure.variant ?? 0];
  if (variant) data.forEach((trace, index) => { trace.x = variant.x[index]; trace.y = variant.y[index]; });
  const options = { responsive: true, displaylogo: false, displayModeBar: hasPointer ? "hover" : false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
  const layout = themed(changed(figure));
  document.getElementById(figure.id).style.minHeight = `${layout.height}px`;
  return Plotly.react(figure.id, data, layout, options);
}

function drawAll() { return Promise.all(figures.map(draw)); }

async function start() {
  const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = document.createElement("script");
  code.textContent = await new Response(stream).text();
  document.head.append(code);
  await drawAll();
  for (const figure of figures) {
    document.getElementById(figure.id).on("plotly_click", (event) => {
      const run = event.points[0].customdata?.[1];
      if (run) goTo(run);
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  document.documentElement.dataset.drawn = figures.length;
}

/* clicking a dot shows its run in the table of runs */
function goTo(run) {
  const row = document.getElementById(`run-${run}`);
  row.closest("details").open = true;
  location.hash = row.id;
}

/* a chip hides or shows its arm in all plots; a double click shows only this arm */
const chips = [...document.querySelectorAll("[data-arm]")];
for (const chip of chips) {
  chip.addEventListener("click", () => {
    hidden.has(chip.dataset.arm) ? hidden.delete(chip.dataset.arm) : hidden.add(chip.dataset.arm);
    refresh();
  });
  chip.addEventListener("dblclick", () => {
    hidden.clear();
    chips.filter((other) => other !== chip).forEach((other) => hidden.add(other.dataset.arm));
    refresh();
  });
}
document.querySelector("[data-all]").addEventListener("click", () => { hidden.clear(); refresh(); });

function refresh() {
  chips.forEach((chip) => chip.setAttribute("aria-pressed", String(!hidden.has(chip.dataset.arm))));
  drawAll();
}

for (const button of document.querySelectorAll("[data-variant]")) {
  button.addEventListener("click", () => {
    const figure = figures.find((other) => other.id === button.dataset.plot);
    figure.variant = Number(button.dataset.variant);
    for (const other of button.parentNode.children) other.setAttribute("aria-pressed", String(other === button));
    draw(figure);
  });
}

start();
