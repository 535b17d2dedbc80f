const byId = (id) => document.getElementById(id);
const element = (tag, text, parent) => {
  const made = document.createElement(tag);
  made.textContent = text;
  parent?.append(made);
  return made;
};
const escaped = (text) => element("i", text).innerHTML;

// ---- Tables: numbers sort as numbers; cells without a value come last in either order.
const valueOf = (row, column) => {
  const text = row.cells[column].textContent.trim().replaceAll("\u2212", "-");
  const number = parseFloat(text);
  return text === "" || text === "\u2013" ? null : Number.isNaN(number) ? text : number;
};
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }));
}
document.addEventListener("click", async (event) => {
  const { copy } = event.target.dataset;
  if (!copy) return;
  await navigator.clipboard.writeText(copy);
  event.target.textContent = "copied";
});

// ---- The values of a chart, at the pointer or the finger.
const tip = element("div", "", document.body);
tip.id = "tip";
tip.hidden = true;
for (const name of ["pointerover", "pointerdown"]) {
  document.addEventListener(name, (event) => {
    const title = event.target.closest?.("svg g")?.querySelector("title, desc");
    tip.hidden = !title;
    if (!title) return;
    tip.textContent = title.textContent;
    tip.style.top = `${event.clientY + 12}px`;
    tip.style.left = `${Math.max(Math.min(event.clientX, innerWidth - 290), 4)}px`;
  });
}
// The browser's own hints would lie above ours.
for (const title of document.querySelectorAll("svg title")) {
  title.replaceWith(Object.assign(document.createElementNS("http://www.w3.org/2000/svg", "desc"),
    { textContent: title.textContent }));
}

// ---- Sampled answers: two of them side by side.
if (DATA.answers.length) {
  const columns = DATA.answers.flatMap(({ name, answers }) =>
    Object.entries(answers).map(([when, texts]) => ({ name: `${name}: ${when}`, texts })));
  const before = columns.findIndex(({ name }) => name.includes(": before training"));
  const best = columns.findIndex(({ name }) => name.includes(": best"));
  const picks = [Math.max(before, 0), best < 0 ? columns.length - 1 : best].map((start) => {
    const select = element("select", "", byId("answer-tools"));
    columns.forEach(({ name }, place) => element("option", name, select).value = place);
    select.value = start;
    select.addEventListener("change", draw);
    return select;
  });
  function draw() {
    byId("answers").replaceChildren();
    DATA.answers[0].prompts.forEach((prompt, row) => {
      element("h3", prompt, byId("answers"));
      const side = element("div", "", byId("answers"));
      side.className = "side";
      for (const pick of picks) element("p", columns[pick.value].texts[row] ?? "", side);
    });
  }
  draw();
}

// ---- Curves: a colour for each setting, a line for each run.
if (DATA.curves.metrics.length) {
  const { runs, shown } = DATA.curves;
  const settings = [...new Set(runs.map(({ setting }) => setting))];
  const colour = (setting) => `var(--c${settings.indexOf(setting) % 7})`;
  const boxes = settings.map((setting) => {
    const label = element("label", "", byId("settings"));
    const box = element("input", "", label);
    box.type = "checkbox";
    box.checked = !shown.length || shown.includes(setting);
    box.addEventListener("change", drawCurves);
    element("span", ` ${setting}`, label).style.color = colour(setting);
    return box;
  });
  for (const [id, state] of [["all", true], ["none", false]]) {
    byId(id).addEventListener("click", () => {
      boxes.forEach((box) => { box.checked = state; });
      drawCurves();
    });
  }
  byId("metric").addEventListener("change", drawCurves);
  byId("smoothing").addEventListener("input", drawCurves);
  function drawCurves() {
    const metric = byId("metric").value, weight = Number(byId("smoothing").value);
    const lines = runs.filter(({ setting, curves }) =>
      boxes[settings.indexOf(setting)].checked && curves[metric]?.[0].length).map((run) => {
      const [steps, values] = run.curves[metric];
      let kept = values[0];
      return { ...run, steps, values: values.map((v) => (kept = weight * kept + (1 - weight) * v)) };
    });
    const range = (key) => {
      const all = lines.flatMap((line) => line[key]);
      return [Math.min(...all), Math.max(...all)];
    };
    const [x, y] = [range("steps"), range("values")];
    const share = (value, [low, high]) => high > low ? (value - low) / (high - low) : 0.5;
    const longest = Math.max(...settings.map(({ length }) => length));
    const end = 488 - Math.min(8.8 * longest, 240);
    const at = (step, value) => `${50 + (end - 50) * share(step, x)},${246 - 226 * share(value, y)}`;
    const marks = lines.length ? [0, 0.25, 0.5, 0.75, 1].map((part) => {
      const height = 246 - 226 * part;
      const value = y[0] + part * (y[1] - y[0]), step = Math.round(x[0] + part * (x[1] - x[0]));
      return `<line class="grid" x1="50" x2="${end}" y1="${height}" y2="${height}"/>
        <text x="44" y="${height + 4}" text-anchor="end">${Number(value.toPrecision(3))}</text>
        <text x="${50 + (end - 50) * part}" y="264" text-anchor="middle">${step}</text>`;
    }) : [];
    // The name of a setting stands beside its first line, below the name above it.
    const firsts = settings.map((s) => lines.find(({ setting }) => setting === s)).filter(Boolean);
    let height = 0;
    const names = firsts.length > 14 ? [] : firsts
      .map((line) => [246 - 226 * share(line.values.at(-1), y), line.setting])
      .sort(([a], [b]) => a - b).map(([wanted, setting]) => {
        height = Math.max(wanted, height + 17);
        return `<text class="name" x="${end + 6}" y="${height + 5}" style="fill: ${colour(setting)}">${
          escaped(setting)}</text>`;
      });
    byId("curves").innerHTML = `<svg viewBox="0 0 500 290" role="img" aria-label="curves">
      ${marks.join("")}<text x="${(50 + end) / 2}" y="286" text-anchor="middle">step</text>
      ${lines.map(({ name, setting, steps, values }) => `<g><desc>${escaped(name)}: ${
        Number(values.at(-1).toPrecision(4))} at the end</desc><polyline class="line"
        stroke="${colour(setting)}" points="${steps.map((s, i) => at(s, values[i])).join(" ")}"/>
        </g>`).join("")}${names.join("")}</svg>`;
  }
  drawCurves();
}
