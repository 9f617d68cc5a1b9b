/* The runs: a list of which up to four are overlaid, their curves as they grow, and one run in detail. */
import { answered, failed, tell } from "./status.js";
import { ask, repeatedly } from "./api.js";
import { openRun } from "./run.js";

const { element, isolated, number, chart, chartsOf } = refimplCharts;
const MOST = 4, POINTS = 4000;

export function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  return hours < 48 ? `${hours} h ${Math.round((seconds % 3600) / 60)} min` : `${number(seconds / 86400)} days`;
}

export function openRuns(view, about) {
  const list = element("ul", { className: "run-list" }), charts = element("div", { className: "charts" });
  const found = element("p", { className: "soft small" }), above = element("div"), below = element("div");
  const hint = element("p", { className: "soft small", text: "Drag over a chart to zoom, double-click to see all again. Tick up to four runs to lay them over each other." });
  view.replaceChildren(element("div", { className: "split" },
    element("aside", { "aria-label": "list of runs" }, element("h2", { text: "Runs" }), found, list),
    element("div", {}, above, hint, charts, below)));
  let runs = [], shown = [], drawn = new Map(), series = new Map(), isFirst = true, detail = null, entries = new Map();
  const stops = [];

  function summary(run) {
    const parts = [run.steps ? `step ${run.step?.toLocaleString("en-US") ?? "–"} of ${run.steps.toLocaleString("en-US")}` : `step ${run.step ?? "–"}`];
    if (run.loss !== null) parts.push(`loss ${number(run.loss)}`);
    if (run.state === "training" && run.seconds_left !== null) parts.push(`${duration(run.seconds_left)} left`);
    if (run.faults) parts.push(`${run.faults} faults`);
    if (run.quarantined) parts.push(`${run.quarantined} in quarantine`);
    return parts.join(" · ");
  }

  /* An entry is made once and changed in place, so that the focus stays where it is. */
  function entryOf(run) {
    if (entries.has(run.id)) return entries.get(run.id);
    const box = element("input", { type: "checkbox" }), name = element("span", { className: "name", text: run.name });
    const state = element("span", { className: "detail" }), numbers = element("span", { className: "detail" });
    const done = element("progress", { max: "1", "aria-label": `how far ${run.name} is` });
    const problem = element("span", { className: "detail bad" });
    const label = element("label", {}, box, name, state, done, numbers, problem);
    box.addEventListener("change", () => choose(run.id, box.checked));
    const entry = { row: element("li", {}, label), label, box, state, done, numbers, problem };
    entries.set(run.id, entry);
    return entry;
  }
  function drawList() {
    const rows = runs.map((run) => {
      const entry = entryOf(run), place = shown.indexOf(run.id);
      entry.box.checked = place >= 0;
      entry.box.disabled = place < 0 && shown.length >= MOST;
      entry.label.className = place >= 0 ? `run-${place + 1}` : "";
      entry.state.textContent = run.state;
      entry.done.hidden = !run.steps;
      if (run.steps) entry.done.value = Math.min(1, (run.step ?? 0) / run.steps);
      entry.numbers.textContent = summary(run);
      entry.problem.textContent = run.problem;
      return entry.row;
    });
    if (rows.length !== list.children.length || rows.some((row, at) => row !== list.children[at])) {
      const focused = document.activeElement;
      list.replaceChildren(...rows);
      if (list.contains(focused)) focused.focus();
    }
  }
  async function choose(id, wanted) {
    shown = wanted ? [...shown.filter((each) => each !== id), id].slice(-MOST) : shown.filter((each) => each !== id);
    if (!wanted) tell(id, []);
    drawList();
    await Promise.all(shown.filter((each) => !series.has(each)).map(load));
    drawCharts();
    drawBelow();
  }
  async function load(id) {
    try {
      series.set(id, await ask(`/api/runs/${id}/metrics?points=${POINTS}`));
    } catch (error) {
      if (error.status === 0) throw error;
      tell(id, [error.message]);
      series.set(id, { cursor: "", series: {} }); // the rest of the run can be looked at, and its rows are asked for again
    }
  }
  function drawCharts() {
    const overlaid = shown.map((id) => ({ name: runs.find((run) => run.id === id)?.name ?? id, series: series.get(id)?.series ?? {} }));
    const wanted = overlaid.length ? chartsOf(overlaid) : [];
    const keys = new Set(wanted.map((each) => each.key));
    for (const [key, each] of drawn) {
      if (!keys.has(key)) { each.destroy(); drawn.delete(key); }
    }
    const isSame = [...drawn.keys()].join() === wanted.map((each) => each.key).join();
    if (!isSame) { for (const each of drawn.values()) each.destroy(); drawn = new Map(); }
    for (const each of wanted) {
      if (drawn.has(each.key)) drawn.get(each.key).update(each.series);
      else drawn.set(each.key, chart(charts, each.series, each));
    }
    if (!wanted.length) {
      charts.replaceChildren(element("p", { className: "empty", text: !runs.length ? "There is no run here yet."
        : shown.length ? "No row was logged yet." : "Tick a run to see its curves." }));
    } else charts.querySelector(".empty")?.remove();
  }
  function drawBelow() {
    detail?.close();
    detail = shown.length ? openRun(above, below, shown, (id) => runs.find((run) => run.id === id), about) : null;
    if (!shown.length) { above.replaceChildren(); below.replaceChildren(); }
  }

  /* New rows of the shown runs, added to what is drawn; after too many, everything is asked for again. */
  async function follow() {
    let changed = false;
    for (const id of [...shown]) {
      const held = series.get(id);
      if (!held) continue;
      const news = await ask(`/api/runs/${id}/metrics?after=${encodeURIComponent(held.cursor)}`).catch((error) => {
        if (error.status === 0) throw error;
        if (shown.includes(id)) tell(id, [error.message]);
        return null;
      });
      if (!news) continue;
      tell(id, []);
      if (news.reload) { await load(id); changed = true; continue; }
      held.cursor = news.cursor;
      for (const row of news.rows) add(held.series, row);
      changed ||= news.rows.length > 0;
    }
    if (changed) drawCharts();
  }

  stops.push(repeatedly(2, async () => {
    const answer = await ask("/api/runs");
    answered();
    tell("runs", [answer.problem]);
    runs = answer.runs;
    found.replaceChildren(`${runs.length} in `, isolated(about.runs_folder));
    if (isFirst && runs.length) {
      isFirst = false;
      await choose(runs[0].id, true);
    } else {
      const gone = shown.filter((id) => !runs.some((run) => run.id === id));
      for (const id of gone) await choose(id, false);
      drawList();
      if (!runs.length) drawCharts();
    }
    detail?.update();
  }, failed));
  stops.push(repeatedly(about.poll_seconds ?? 1, follow, failed));
  return () => {
    stops.forEach((stop) => stop());
    detail?.close();
    for (const each of drawn.values()) each.destroy();
    view.replaceChildren();
  };
}

/* A row as written in metrics.jsonl, added to the series by name. */
export function add(series, row) {
  const put = (name, value) => {
    if (typeof value !== "number" || !Number.isFinite(value)) return;
    series[name] ??= { steps: [], values: [] };
    series[name].steps.push(row.step);
    series[name].values.push(value);
  };
  for (const [name, value] of Object.entries(row)) {
    if (name === "loss_by_timestep" && Array.isArray(value)) value.forEach((loss, place) => put(`loss_by_timestep/${place}`, loss));
    else if (name !== "step") put(name, value);
  }
}
