// The player of a job: the whole video, or single clips with their part of the speech; and the live state of the page.
import { announce, poll, progressText } from "./live.js";

const job = document.getElementById("job");
const fps = Number(job.dataset.fps);
const player = document.getElementById("player");
const speech = document.getElementById("speech");
const other = document.getElementById("other");
const caption = document.getElementById("now-playing");
const MAX_DRIFT_SECONDS = 0.08;

let clip = null; // the segment that plays; null: the whole video
let goesOn = false; // play the next clip at the end of this one

const segments = () => [...document.querySelectorAll(".segment")];
const start = () => (clip ? Number(clip.dataset.start) / fps : 0);
const position = () => start() + player.currentTime;
const numFrames = () => segments().reduce((sum, segment) => Math.max(sum, Number(segment.dataset.end)), 0);

function follow(media, seconds) {
  if (Math.abs(media.currentTime - seconds) > MAX_DRIFT_SECONDS) media.currentTime = seconds;
}

function follower() {
  return other && !document.getElementById("other-figure").hidden ? other : null;
}

function synchronise() {
  if (clip) follow(speech, position());
  if (follower()) follow(other, player.currentTime);
}

function mark() {
  for (const segment of segments()) {
    const inside = position() >= segment.dataset.start / fps && position() < segment.dataset.end / fps;
    if (inside) segment.setAttribute("aria-current", "true");
    else segment.removeAttribute("aria-current");
  }
  const head = document.getElementById("playhead");
  head.hidden = numFrames() === 0 || !player.src;
  head.style.setProperty("left", `${(100 * position() * fps) / Math.max(numFrames(), 1)}%`);
}

function load(address, text) {
  speech.pause();
  player.src = address;
  caption.textContent = text;
  showOther();
}

function showOther() {
  if (!follower()) return;
  const address = clip ? clip.dataset.other : document.getElementById("compare").dataset.other;
  if (address) other.src = address;
  else other.removeAttribute("src");
  other.playbackRate = player.playbackRate; // a new source resets it
  if (address && !player.paused) other.play().catch(() => {});
}

function playWhole(seconds = 0, play = true) {
  const source = document.getElementById("play-whole").dataset.src;
  if (!source) return false;
  if (clip || !player.src) {
    clip = null;
    load(source, "Whole video");
  }
  player.currentTime = seconds;
  if (play) player.play().catch(() => {});
  return true;
}

function playClip(segment, seconds = 0, play = true) {
  clip = segment;
  load(segment.dataset.src, `Clip ${Number(segment.dataset.clip) + 1} of ${segments().length}`);
  player.currentTime = seconds;
  if (play) player.play().catch(() => {});
}

function playNext() {
  if (!clip || !goesOn) return;
  const next = segments().find((segment) => Number(segment.dataset.clip) === Number(clip.dataset.clip) + 1);
  if (next && next.dataset.src) playClip(next);
}

player.addEventListener("play", () => {
  synchronise();
  if (clip) speech.play().catch(() => {});
  if (follower()) other.play().catch(() => {});
});
for (const name of ["pause", "waiting", "ended"]) {
  player.addEventListener(name, () => {
    speech.pause();
    if (other) other.pause();
  });
}
player.addEventListener("playing", () => {
  synchronise();
  if (clip) speech.play().catch(() => {});
});
player.addEventListener("seeking", synchronise);
player.addEventListener("timeupdate", () => {
  if (!player.paused) synchronise();
  mark();
});
player.addEventListener("ratechange", () => {
  speech.playbackRate = player.playbackRate;
  if (other) other.playbackRate = player.playbackRate;
});
player.addEventListener("volumechange", () => {
  speech.muted = player.muted;
  speech.volume = player.volume;
});
player.addEventListener("ended", playNext);

// A link to the object store ends after some minutes: ask for a new one, once for each place.
let failedAt = -1;
player.addEventListener("error", () => {
  const seconds = player.currentTime;
  if (!player.src || failedAt === seconds) return;
  failedAt = seconds;
  player.load();
  player.currentTime = seconds;
});

document.addEventListener("click", (event) => {
  const segment = event.target.closest(".segment");
  if (segment && segment.dataset.src) {
    goesOn = false;
    playClip(segment);
  } else if (event.target.closest("#play-whole")) {
    playWhole();
  } else if (event.target.closest("#play-ready")) {
    const first = segments().find((one) => one.dataset.src);
    goesOn = true;
    if (first) playClip(first);
  } else if (event.target.closest("#compare")) {
    const button = document.getElementById("compare");
    const figure = document.getElementById("other-figure");
    figure.hidden = !figure.hidden;
    button.setAttribute("aria-pressed", String(!figure.hidden));
    other.pause();
    showOther();
  } else if (event.target.closest(".waveform")) {
    const box = document.getElementById("waveform").getBoundingClientRect();
    seek((((event.clientX - box.left) / box.width) * numFrames()) / fps);
  }
});

function seek(seconds) {
  if (!clip && playWhole(seconds)) return;
  const inside = (one) => seconds >= one.dataset.start / fps && seconds < one.dataset.end / fps;
  const segment = segments().find((one) => one.dataset.src && inside(one));
  if (segment) playClip(segment, seconds - segment.dataset.start / fps);
}

let wavePath = "";
async function drawWaveform() {
  for (const item of document.querySelectorAll(".segments li")) {
    item.style.setProperty("flex-grow", item.dataset.frames);
  }
  const svg = document.getElementById("waveform");
  if (!wavePath && svg.dataset.src) {
    try {
      const answer = await fetch(svg.dataset.src);
      if (!answer.ok) return;
      const peaks = await answer.json();
      const step = 800 / Math.max(peaks.length, 1);
      wavePath = peaks
        .map((peak, index) => {
          const height = Math.max(peak * 0.48, 0.6);
          return `M${(index * step).toFixed(2)} ${(50 - height).toFixed(1)}v${(2 * height).toFixed(1)}`;
        })
        .join("");
    } catch {
      return;
    }
  }
  document.getElementById("wave").setAttribute("d", wavePath);
}

// What a reader has scrolled or opened stays so in the new copy of a part, and the focus stays where it is.
function replaceKeepingView(part, replacement) {
  const views = (of) => [...of.querySelectorAll(".scroll, .events, details")];
  const kept = views(part).map(({ scrollLeft, scrollTop, open }) => ({ scrollLeft, scrollTop, open }));
  const key = (one) => one.id || one.dataset.action || one.getAttribute("href") || one.ariaLabel || one.localName;
  const focused = part.contains(document.activeElement) ? key(document.activeElement) : null;
  part.replaceWith(replacement);
  views(replacement).forEach((view, index) => Object.assign(view, kept[index]));
  if (!focused) return;
  const again = [...replacement.querySelectorAll("a, button, summary, [tabindex]")].find((one) => key(one) === focused);
  if (again) again.focus({ preventScroll: true });
}

// Take the parts that changed from a fresh copy of this page; player and forms stay.
async function refresh() {
  const answer = await fetch(location.href, { cache: "no-store", headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const replacement = fresh.getElementById(part.id);
    if (part.dataset.live === "once" && part.childElementCount) continue; // somebody may be typing there
    if (replacement && replacement.outerHTML !== part.outerHTML) replaceKeepingView(part, replacement);
  }
  if (clip) clip = document.getElementById(clip.id) || clip;
  const compare = document.getElementById("compare");
  if (compare && follower()) compare.setAttribute("aria-pressed", "true");
  await drawWaveform();
  mark();
  if (!player.src) choose();
}

function choose() {
  const first = segments().find((segment) => segment.dataset.src);
  if (!playWhole(0, false) && first) playClip(first, 0, false);
}

let version = Number(job.dataset.version);
let status = document.querySelector("#live-state .badge").textContent.trim();
const asked = () => document.querySelector("#live-approval h2")?.textContent ?? "";
let question = asked();
if (!("ended" in job.dataset)) {
  poll(`${job.dataset.job}/state.json`, 3, async (state) => {
    const line = document.getElementById("progress-text");
    if (line) line.textContent = progressText(state);
    if (state.cost) document.getElementById("cost").textContent = state.cost;
    if (state.version > version) { // a poll may be a second older than the page
      await refresh();
      version = state.version;
    }
    if (state.status !== status) {
      status = state.status;
      announce(`${job.dataset.job} ${status}`);
    } else if (asked() && asked() !== question) announce(asked());
    question = asked();
    return !["succeeded", "failed", "cancelled"].includes(state.status);
  });
}

drawWaveform();
choose();
