/* The banner of problems, and the word that says whether the server answers. */
const { element, printable } = refimplCharts;
const problems = new Map();

/* Shows the lines that one part of the page has to tell, in place of those it told before. */
export function tell(from, lines) {
  problems.set(from, lines.filter(Boolean));
  const banner = document.getElementById("problems"), all = [...new Set([...problems.values()].flat().map(printable))];
  const before = [...banner.children].map((line) => line.textContent);
  if (before.join("\n") !== all.join("\n")) banner.replaceChildren(...all.map((text) => element("p", { text })));
  const word = problems.get("server")?.length ? "not connected" : "live", alive = document.getElementById("alive");
  if (alive.textContent !== word) alive.textContent = word;
}
export const answered = () => tell("server", []);
export const failed = (error) => tell("server", [error.message]);
