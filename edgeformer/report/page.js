"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const FILTERS = [["model", "model"], ["machine", "machine"], ["shape", "shape"], ["runtime", "runtime"], ["precision", "precision"]];
const TEXT = new Set(["model", "runtime", "precision", "machine", "shape", "verdict"]);
const BLOCKS = ["attention", "ffn", "norm", "head", "other"];
const rows = data.rows.filter((row) => !row.twin);
const chosen = {};
let sorting = { column: null, down: false };

for (const row of data.rows) row.note = [row.error, ...row.flags].filter(Boolean).join("; ");

const values = (key) => [...new Set(rows.map((row) => row[key]))];
for (const [key] of FILTERS) chosen[key] = new Set(values(key));
// A figure compares rows of one shape: where there are several, the first is selected.
if (values("shape").length > 1) chosen.shape = new Set([rows[0].shape]);

const within = (row, skip) => FILTERS.every(([key]) => key === skip || chosen[key].has(row[key]));
const shown = (skip) => rows.filter((row) => within(row, skip));

function names(list) {
  const vary = ["model", "machine", "shape"].filter((key) => new Set(list.map((row) => row[key])).size > 1);
  return list.map((row) => ({ ...row, name: [row.label, ...vary.map((key) => row[key])].join(" · ") }));
}

function element(tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function drawFilters() {
  const nav = byId("filters");
  nav.replaceChildren();
  for (const [key, title] of FILTERS) {
    const all = values(key);
    if (all.length < 2) continue;
    const set = element("fieldset");
    set.append(element("legend", {}, title));
    for (const value of all) {
      const chip = element("button", { type: "button", class: "chip", "aria-pressed": chosen[key].has(value), "data-filter": key, "data-value": value, title: value }, value);
      chip.onclick = (event) => choose(key, value, all, event.shiftKey);
      set.append(chip);
    }
    nav.append(set);
  }
  nav.hidden = !nav.childElementCount;
}

// The first click on a chip selects it alone; further clicks add and remove; an empty selection selects all again.
function choose(key, value, all, add) {
  const set = chosen[key];
  const everything = set.size === all.length;
  if (everything && !add) chosen[key] = new Set([value]);
  else if (set.has(value)) set.delete(value);
  else set.add(value);
  if (!chosen[key].size) chosen[key] = new Set(all);
  draw();
}

const dark = () => {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

function config() {
  const style = getComputedStyle(document.documentElement);
  const [text, soft, line] = ["--text", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
  return {
    background: "transparent", view: { stroke: null }, font: "system-ui, sans-serif",
    axis: { labelColor: text, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: "normal" },
    legend: { labelColor: text, titleColor: soft }, rule: { color: text }, tick: { color: text }, text: { color: soft }, line: { color: soft },
    range: { category: dark()
      ? ["#7aa7ff", "#ffb86b", "#7ad39a", "#ff8a9a", "#c7a6ff", "#62d0d6", "#e8d36b", "#f29ad2", "#b0b6c0", "#9bd65f"]
      : ["#2f6fde", "#d9730d", "#1b8a4b", "#c8324a", "#7b4fd0", "#0f8f98", "#a58a00", "#b83b8c", "#666b75", "#5a9216"] },
  };
}

const drawn = new Map();
async function figure(name, datasets) {
  const place = byId(name);
  const list = Object.values(datasets)[0];
  drawn.get(name)?.finalize();
  drawn.delete(name);
  if (!list.length) {
    place.replaceChildren(element("p", { class: "empty" }, EMPTY[name] || "No rows to show for these filters."));
    return;
  }
  const spec = { ...data.charts[name], datasets, autosize: { type: "fit-x", contains: "padding" } };
  const made = await vegaEmbed(place, spec, { actions: { export: true, source: false, compiled: false, editor: false }, renderer: "svg", config: config() });
  made.view.addEventListener("click", (_, item) => item?.datum?.id !== undefined && openRecord(item.datum.id));
  drawn.set(name, made);
}
const EMPTY = {
  pareto: "No row has a KL divergence from the original: compare quantized exports (q8, q4).",
  roofline: "The machine's peak rates were not measured.",
  blocks: "No row was profiled: measure with --profile.",
  context: "No row generated tokens.",
};

function number(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return size >= 100 ? Math.round(value).toLocaleString("en") : size >= 0.01 || !size ? value.toPrecision(3) : value.toExponential(1);
}

function drawTable() {
  const list = shown();
  const columns = data.columns.filter((column) => column === "verdict" || list.some((row) => row[column] !== null && row[column] !== undefined));
  const head = element("tr");
  for (const column of columns) {
    const cell = element("th", { scope: "col", class: TEXT.has(column) ? "text" : "", "data-column": column }, column.replaceAll("_", " "));
    if (sorting.column === column) cell.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    cell.onclick = () => {
      sorting = { column, down: sorting.column === column ? !sorting.down : !TEXT.has(column) && column !== "rank" };
      drawTable();
    };
    head.append(cell);
  }
  byId("table").tHead.replaceChildren(head);
  const key = sorting.column;
  const order = (a, b) => {
    const [x, y] = key ? [a[key], b[key]] : [a.rank, b.rank];
    if (x === y) return a.id - b.id;
    if (x === null || x === undefined) return 1;
    if (y === null || y === undefined) return -1;
    return (x < y ? -1 : 1) * (key && sorting.down ? -1 : 1);
  };
  const body = [...list].sort(order).map((row) => {
    const line = element("tr", { "data-row": row.id, class: row.ranked ? "" : "unranked" });
    for (const column of columns) {
      const text = column === "rank" && row.rank ? `${row.rank}${row.tie ? "=" : ""}` : number(row[column]);
      line.append(element("td", { class: `${TEXT.has(column) ? "text" : ""} ${column === "verdict" ? row.verdict : ""}`, title: column === "verdict" ? row.note : "" }, text));
    }
    line.onclick = () => openRecord(row.id);
    return line;
  });
  byId("table").tBodies[0].replaceChildren(...body);
}

function openRecord(id) {
  const row = data.rows[id];
  const dialog = byId("record");
  dialog.querySelector("h2").textContent = `${row.label} · ${row.shape} · ${row.model}`;
  dialog.querySelector("p").textContent = row.note || "no errors or flags";
  const told = row.records.map((n) => ({ record: n + 1, ...data.records[n] }));
  dialog.querySelector("pre").textContent = JSON.stringify(told, null, 1);
  dialog.showModal();
}

function drawRemarks(list) {
  const ranked = list.filter((row) => row.ranked);
  const machines = new Set(list.map((row) => row.machine)).size;
  byId("summary").textContent = `${list.length} rows, ${ranked.length} verified and ranked, ${machines} machine${machines === 1 ? "" : "s"} · edgeformer ${data.version}`;
  const parts = [];
  const known = new Map(list.filter((row) => row.noise_low).map((row) => [`${row.run} ${row.shape}`, row]));
  for (const row of known.values()) {
    const shape = known.size > 1 ? `${row.model}, ${row.shape}` : row.shape;
    parts.push(`${shape}: the same row run twice differs by a factor of ${row.noise_low.toFixed(3)}–${row.noise_high.toFixed(3)} (95 %).`);
  }
  const flags = new Set(list.flatMap((row) => row.run_flags));
  const place = byId("noise");
  place.replaceChildren(...parts.map((part) => element("span", {}, part + " ")), ...[...flags].map((flag) => element("b", {}, flag + ". ")));
}

function draw() {
  drawFilters();
  const list = names(shown());
  const everyShape = names(shown("shape"));
  drawRemarks(list);
  const have = (key, sign) => list.filter((row) => row[key] !== null && row[key] !== undefined).sort((a, b) => sign * (a[key] - b[key]));
  const points = list.flatMap((row) => row.points.map((point) => ({ ...row, ...point })));
  const machines = new Set(points.map((point) => point.machine));
  const blocks = list.flatMap((row) => Object.entries(row.blocks).flatMap(([test, made]) =>
    BLOCKS.map((block, order) => ({ ...row, name: `${row.name} · ${test}`, block, order, share: made.blocks[block] }))));
  figure("decode", { rows: have("decode_ts", -1) });
  figure("prefill", { rows: have("prefill_ts", -1) });
  figure("context", { rows: everyShape.filter((row) => row.itl_ms_p50 !== null && row.batch === 1) });
  figure("pareto", { rows: list.filter((row) => row.ranked && row.kl !== null && row.decode_ts !== null) });
  figure("roofline", { points, roofs: data.roofs.filter((roof) => machines.has(roof.machine)) });
  figure("memory", { rows: have("peak_mb", 1) });
  figure("blocks", { blocks });
  drawTable();
}

byId("theme").onclick = () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  draw();
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
byId("download").onclick = () => {
  const numbers = shown().flatMap((row) => row.records);
  const text = numbers.map((n) => JSON.stringify(data.records[n]) + "\n").join("");
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "application/jsonl" })), download: "records.jsonl" });
  link.click();
};
byId("record").onclick = (event) => event.target === byId("record") && byId("record").close();
draw();
