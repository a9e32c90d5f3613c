// Poll an address with its ETag while the page is visible, until the handler returns false.
export function poll(address, seconds, handle) {
  let etag = null;
  let timer = null;
  let ended = false;
  const ask = async () => {
    timer = null;
    if (document.hidden || ended) return;
    try {
      const url = typeof address === "function" ? address() : address;
      if (url === null) return;
      const answer = await fetch(url, { cache: "no-store", headers: etag ? { "If-None-Match": etag } : {} });
      if (answer.status === 200) {
        etag = answer.headers.get("ETag");
        ended = (await answer.json().then(handle)) === false;
      } else if (answer.status === 401 || answer.status === 403) {
        ended = true;
        announce("Your login has ended, or its rights: reload this page to log in again and to see the current state.");
        document.getElementById("announcement").className = "notice warning toast";
      }
    } catch {
      // The server is away for a moment: ask again.
    }
    if (!ended) timer = setTimeout(ask, 1000 * seconds);
  };
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && timer === null) ask();
  });
  timer = setTimeout(ask, 1000 * seconds);
}

export function announce(text) {
  document.getElementById("announcement").textContent = text;
}

export function progressText(state) {
  if (!state.of) return "not planned yet";
  let text = `${state.done} of ${state.of} clips`;
  if (state.steps) text += ` · clip ${state.clip + 1} step ${state.step}/${state.steps}`;
  if (state.waits) text += ` · waits for approval of ${state.waits}`;
  if (state.eta) text += ` · ${state.eta} left`;
  return text;
}
