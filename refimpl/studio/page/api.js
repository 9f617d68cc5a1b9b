/* Asking the server. An error is an Error with the one line that the server gave. */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Accept: "application/json", ...options.headers }, ...options });
  } catch {
    throw Object.assign(new Error("the studio does not answer; is it still running?"), { status: 0 });
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(body.error ?? `the studio answered ${answer.status}`), { status: answer.status });
  return body;
}

export const send = (path, body) => ask(path, {
  method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", Accept: "application/json" },
});

/* Calls `work` now and every `seconds` while it is wanted and the page is seen; one call at a time. */
export function repeatedly(seconds, work, failed) {
  let stopped = false, timer = 0;
  async function once() {
    if (stopped) return;
    if (!document.hidden) {
      try { await work(); } catch (error) { failed(error); }
    }
    if (!stopped) timer = setTimeout(once, 1000 * seconds);
  }
  once();
  return () => { stopped = true; clearTimeout(timer); };
}
