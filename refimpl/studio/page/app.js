/* The page: which view is shown. */
import { ask } from "./api.js";
import { openData } from "./data.js";
import { openRuns } from "./runs.js";
import { failed, tell } from "./status.js";

const at = (id) => document.getElementById(id);
let close = () => {};
async function start() {
  let about;
  try {
    about = await ask("/api/studio");
  } catch (error) {
    failed(error);
    setTimeout(start, 2000);
    return;
  }
  tell("studio", about.problems ?? []);
  at("to-data").hidden = !about.has_data;
  const views = { runs: openRuns, data: about.has_data ? openData : openRuns };
  function show() {
    const name = location.hash === "#data" && about.has_data ? "data" : "runs";
    if (location.hash === "#view") return;
    close();
    for (const each of ["runs", "data"]) {
      at(`${each}-view`).hidden = each !== name;
      at(`to-${each}`).toggleAttribute("aria-current", each === name);
      if (each === name) at(`to-${each}`).setAttribute("aria-current", "page");
    }
    document.title = `${name === "data" ? "Data" : "Runs"}, refimpl studio`;
    close = views[name](at(`${name}-view`), about);
  }
  addEventListener("hashchange", show);
  show();
}
start();
