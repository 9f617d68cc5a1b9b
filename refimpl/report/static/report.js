/* Draws the report of a run from the data that its page holds. */
"use strict";
(() => {
  const run = JSON.parse(document.getElementById("data").textContent);
  const charts = document.getElementById("charts"), samples = document.getElementById("samples");
  if (charts) {
    for (const each of refimplCharts.chartsOf([run])) refimplCharts.chart(charts, each.series, each);
  }
  if (samples) refimplCharts.samples(samples, run.grids);
})();
