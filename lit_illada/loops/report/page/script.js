(() => {
  const all = JSON.parse(document.getElementById("data").textContent);
  if (!all.length) return;
  const $ = (id) => document.getElementById(id);
  const filters = { group: $("by-group"), kind: $("by-kind"), right: $("by-right") };
  let chosen = all, place = 0, mode = "marks";

  const add = (parent, name, text, kind) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (kind) node.className = kind;
    parent.append(node);
    return node;
  };
  const fill = (select, values) => values.forEach((value) => { add(select, "option", value.replaceAll("_", " ")).value = value; });
  fill(filters.group, [...new Set(all.map((text) => text.group))]);
  fill(filters.kind, [...new Set(all.flatMap((text) => text.kinds))]);

  const matches = (text) =>
    (!filters.group.value || text.group === filters.group.value) &&
    (!filters.kind.value || text.kinds.includes(filters.kind.value)) &&
    (!filters.right.value || String(text.right) === filters.right.value);

  function choose() {
    chosen = all.filter(matches);
    place = 0;
    show();
  }

  function show() {
    const text = chosen[place];
    $("place").textContent = chosen.length ? `${place + 1} of ${chosen.length}` : "no such text";
    $("about").replaceChildren();
    $("text").replaceChildren();
    $("prompt").hidden = !text || !text.prompt;
    $("heat").hidden = !text || !text.trace;
    if (!text) return;
    const chip = (said, kind = "") => add($("about"), "span", said, `chip ${kind}`);
    chip(text.id);
    chip(text.group);
    text.kinds.forEach((kind) => chip(kind.replaceAll("_", " "), "kind"));
    if (text.right !== null) chip(text.right ? "right" : "wrong", text.right ? "good" : "bad");
    if (text.rightBefore !== null) chip(text.rightBefore ? "right before the onset" : "not right before the onset");
    if (text.main) chip(`onset ${text.main.onset} of ${text.length} · period ${text.main.period} · ${text.main.cycles} copies · ${text.wasted} wasted`);
    text.how.forEach((how) => chip(how));
    $("prompt").querySelector("pre").textContent = text.prompt;
    let first = null;
    for (const [piece, mark] of text.pieces) {
      if (!mark) { $("text").append(piece); continue; }
      const node = add($("text"), "mark", piece, `m${mark}`);
      if (first === null) first = node;
    }
    $("text").scrollTop = first ? Math.max(0, first.offsetTop - $("text").offsetTop - 80) : 0;
    if (text.trace) draw(text.trace);
  }

  // dark blue over green to yellow: light where the value is high, in both themes
  const ramp = (x) => {
    const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
    const at = Math.max(0, Math.min(1, x)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(at));
    return `rgb(${stops[i].map((from, k) => Math.round(from + (stops[i + 1][k] - from) * (at - i))).join(",")})`;
  };
  const frame = { left: 40, right: 8, top: 8, bottom: 26 };

  function draw(trace) {
    const canvas = $("map"), count = trace.steps.length, last = Math.max(...trace.steps, 1);
    const width = canvas.parentElement.clientWidth - 24, height = Math.max(180, Math.min(380, (last + 1) * 4 + 40));
    const scale = window.devicePixelRatio || 1;
    canvas.width = width * scale; canvas.height = height * scale; canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const w = (width - frame.left - frame.right) / Math.max(1, count), h = (height - frame.top - frame.bottom) / (last + 1);
    const x = (i) => frame.left + i * w, y = (step) => frame.top + step * h;
    const top = mode === "entropy" && trace.entropy ? Math.max(...trace.entropy, 1e-6) : 1;
    const marks = [cssValue("--dim"), cssValue("--s1"), cssValue("--s5"), cssValue("--s0")];
    for (let i = 0; i < count; i++) {
      pen.fillStyle = cssValue("--masked");
      pen.fillRect(x(i), y(0), w + .3, trace.steps[i] * h);
      const value = mode === "marks" ? null : trace[mode] && trace[mode][i] / top;
      pen.fillStyle = value === null || value === undefined ? marks[trace.marks[i]] : ramp(value);
      pen.globalAlpha = .22;
      pen.fillRect(x(i), y(trace.steps[i]), w + .3, y(last + 1) - y(trace.steps[i]));
      pen.globalAlpha = 1;
      pen.fillRect(x(i), y(trace.steps[i]), Math.max(w, 1.2), Math.max(h, 2));
    }
    pen.strokeStyle = cssValue("--outline");
    for (const loop of trace.loops) {
      const steps = trace.steps.slice(loop.start, loop.end), low = Math.min(...steps), high = Math.max(...steps);
      pen.lineWidth = 1.6; pen.setLineDash([]);
      pen.strokeRect(x(loop.start), y(low) - 1, (loop.end - loop.start) * w, (high - low + 1) * h + 2);
      pen.lineWidth = .8; pen.setLineDash([3, 3]);
      for (const at of loop.copies) { pen.beginPath(); pen.moveTo(x(at), y(low)); pen.lineTo(x(at), y(high + 1)); pen.stroke(); }
    }
    pen.setLineDash([]);
    pen.fillStyle = cssValue("--dim"); pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "right";
    for (const step of [0, Math.round(last / 2), last]) pen.fillText(step, frame.left - 6, y(step) + 9);
    pen.textAlign = "center";
    const ticks = 6;
    for (let k = 0; k <= ticks; k++) { const i = Math.round(k * Math.max(0, count - 1) / ticks); pen.fillText(i, x(i + .5), height - 9); }
    canvas.onpointermove = (event) => {
      const i = Math.floor((event.offsetX - frame.left) / w);
      if (i < 0 || i >= count) return;
      const token = trace.tokens ? ` ${JSON.stringify(trace.tokens[i])}` : "";
      const sure = trace.confidence ? `, confidence ${trace.confidence[i]}` : "", open = trace.entropy ? `, entropy ${trace.entropy[i]}` : "";
      $("under").textContent = `token ${i}${token}: step ${trace.steps[i]}${sure}${open}`;
    };
  }

  const move = (by) => { if (chosen.length) { place = (place + by + chosen.length) % chosen.length; show(); } };
  $("previous").onclick = () => move(-1);
  $("next").onclick = () => move(1);
  Object.values(filters).forEach((select) => { select.onchange = choose; });
  document.querySelectorAll("[data-mode]").forEach((button) => {
    button.onclick = () => {
      mode = button.dataset.mode;
      document.querySelectorAll("[data-mode]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      draw(chosen[place].trace);
    };
  });
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || ["SELECT", "INPUT"].includes(event.target.tagName)) return;
    if (event.key === "ArrowRight" || event.key === "j") move(1);
    else if (event.key === "ArrowLeft" || event.key === "k") move(-1);
    else return;
    event.preventDefault();
  });
  let resized;
  window.addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => chosen[place] && chosen[place].trace && draw(chosen[place].trace), 120); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chosen[place] && chosen[place].trace && draw(chosen[place].trace));
  show();
})();
