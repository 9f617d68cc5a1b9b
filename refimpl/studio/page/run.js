/* What is shown below the curves: numbers, actions, samples, faults and settings of the chosen runs. */
import { answered, failed, tell } from "./status.js";
import { ask, send } from "./api.js";
import { duration } from "./runs.js";

const { element, isolated, number, percent, samples } = refimplCharts;
const ACTIONS = { sample: "Sample now", checkpoint: "Save a checkpoint now", stop: "Stop and save" };

export function openRun(above, below, ids, runOf, about) {
  let closed = false;
  const boxes = ids.map((id, place) => boxOf(id, place, runOf, about));
  const differences = element("div");
  above.replaceChildren(...boxes.map((each) => each.head));
  below.replaceChildren(...boxes.map((each) => each.box), differences);
  if (ids.length > 1) {
    ask(`/api/differences?ids=${ids.join(",")}`).then((answer) => {
      if (closed) return;
      const names = ids.map((id) => runOf(id)?.name ?? id);
      differences.replaceChildren(element("h2", { text: "Settings that differ" }), answer.differences.length
        ? table(["setting", ...names], answer.differences.map(({ key, values }) => [key, ...values.map(worded)]))
        : element("p", { text: "These runs have the same settings." }));
    }).catch((error) => tell("differences", [error.message]));
  }
  boxes.forEach((each) => each.load());
  return { update: () => boxes.forEach((each) => each.update()), close() { closed = true; boxes.forEach((each) => each.close()); } };
}

export const worded = (value) => typeof value === "string" ? value : value === null ? "–" : JSON.stringify(value);

export function table(header, rows) {
  return element("div", { className: "table", tabindex: "0", role: "region", "aria-label": header.join(", ") }, element("table", {},
    element("thead", {}, element("tr", {}, ...header.map((text) => element("th", { text })))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text) => element("td", { text: text ?? "–" })))))));
}

function boxOf(id, place, runOf, about) {
  const name = runOf(id)?.name ?? id;
  const facts = element("dl", { className: "facts" }), grids = element("div"), rest = element("div"), asked = element("p", { className: "soft small", role: "status" });
  const actions = element("div", { className: "actions" });
  const report = element("p", { className: "small" });
  const named = () => element("h2", {}, element("span", { className: "swatch" }), isolated(name));
  const head = element("section", { className: `run-${place + 1}`, "aria-label": `${name} now` },
    element("div", { className: "run-head" }, named(), actions), asked, facts);
  const box = element("section", { className: `run-${place + 1} run-box`, "aria-label": name }, element("div", { className: "run-head" }, named()),
    report, grids, rest);
  let slider = null, closed = false, known = "";

  if (about.control) {
    for (const [action, text] of Object.entries(ACTIONS)) {
      const button = element("button", { type: "button", text, "data-action": action });
      button.addEventListener("click", async () => {
        button.disabled = true;
        try {
          const answer = await send(`/api/runs/${id}/control`, { action });
          asked.textContent = `asked for: ${answer.asked.join(", ")}; training takes it with its next step`;
        } catch (error) {
          asked.textContent = error.message;
        }
        button.disabled = false;
      });
      actions.append(button);
    }
  }

  function numbers() {
    const run = runOf(id);
    if (!run) return;
    actions.hidden = run.state !== "training";  // nobody else reads what is asked for
    const fact = (label, value, unit) => element("div", {}, element("dt", { text: label }),
      element("dd", {}, document.createTextNode(value), unit ? element("small", { text: unit }) : null));
    facts.replaceChildren(
      fact("state", run.state),
      fact("step", run.step === null ? "–" : run.step.toLocaleString("en-US"), run.steps ? `of ${run.steps.toLocaleString("en-US")}` : ""),
      fact("loss", number(run.loss)), fact("held-out loss", number(run.heldout_loss)),
      fact("images per second", number(run.images_per_second)),
      ...(run.mfu === null ? [] : [fact("MFU", percent(run.mfu))]),
      ...(run.state === "training" ? [fact("time left", duration(run.seconds_left))] : []));
  }

  async function load() {
    numbers();
    let run;
    try { run = await ask(`/api/runs/${id}`); answered(); } catch (error) {
      if (error.status === 0) failed(error); else rest.replaceChildren(element("p", { className: "bad", text: error.message }));
      return;
    }
    if (closed) return;
    const now = JSON.stringify([run.sample_grids.length, run.faults, run.quarantined, run.checkpoints, run.asked]);
    if (now === known) return;
    known = now;
    if (run.asked.length) asked.textContent = `asked for: ${run.asked.join(", ")}; training takes it with its next step`;
    else if (asked.textContent.startsWith("asked for")) asked.textContent = "";
    if (run.sample_grids.length && !slider) {
      grids.append(element("h3", { text: "Samples by step" }));
      slider = samples(grids, run.sample_grids);
    } else slider?.update(run.sample_grids);
    report.replaceChildren();
    if (run.report_url) report.append(element("a", { href: run.report_url, target: "_blank", rel: "noopener", text: "Its report" }));
    rest.replaceChildren(...details(run));
  }
  return {
    head, box, load,
    update() { numbers(); const run = runOf(id); if (run && (run.state === "training" || known === "")) load(); },
    close() { closed = true; },
  };
}

function details(run) {
  const folded = (text, inside, open) => {
    const made = element("details", {}, element("summary", { text }), inside);
    made.open = Boolean(open);
    return made;
  };
  const found = [];
  if (run.fault_rows.length) {
    const rows = run.fault_rows.flatMap((fault) => fault.images.map((image) => [fault.step, fault.cause, image.id, image.timestep, number(image.sigma), number(image.loss)]));
    found.push(folded(`${run.faults} skipped steps: a loss or a gradient was not finite`, table(["step", "cause", "image", "timestep", "σ", "loss"], rows), true));
  }
  if (run.quarantine.length) {
    found.push(folded(`${run.quarantined} images in quarantine`, table(["path", "kind", "reason"],
      run.quarantine.map((bad) => [bad.path, bad.kind, bad.reason])), true));
  }
  if (run.checkpoints.length) found.push(element("p", { className: "small soft", text: `Checkpoints of steps ${run.checkpoints.slice(-8).map((step) => step.toLocaleString("en-US")).join(", ")}.` }));
  const settings = Object.entries(run.settings ?? {});
  if (settings.length) found.push(folded(`${settings.length} settings`, table(["setting", "value"], settings.map(([key, value]) => [key, worded(value)]))));
  return found;
}
