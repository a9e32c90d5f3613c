// Keep the cards of unfinished jobs current, and play a video while the pointer rests on its card.
import { announce, poll, progressText } from "./live.js";

const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const cards = () => [...document.querySelectorAll(".card:not([data-ended])")];

function update(card, state) {
  if (card.dataset.status !== state.status) {
    card.dataset.status = state.status;
    const badge = card.querySelector(".badge");
    badge.className = `badge ${state.status}`;
    badge.lastChild.textContent = state.status;
    announce(`${card.dataset.job} ${state.status}`);
  }
  const bar = card.querySelector("progress");
  bar.max = state.of || 1;
  bar.value = state.done + (state.steps ? state.step / state.steps : 0);
  card.querySelector(".progress-text").textContent = progressText(state);
  const picture = card.querySelector(".poster img");
  const address = `job/${card.dataset.job}/poster.jpg?v=${state.done ? 1 : 0}`;
  if (picture.getAttribute("src") !== address) {
    picture.classList.remove("missing");
    picture.src = address;
  }
  if (state.cost) card.querySelector(".cost").textContent = state.cost;
  card.querySelector(".reason").textContent = state.reason || "";
  if (ENDED.has(state.status)) {
    card.dataset.ended = "";
    card.querySelector(".live").hidden = true;
  }
}

poll(
  () => {
    const jobs = cards().map((card) => card.dataset.job);
    return jobs.length ? `videos/changes.json?jobs=${jobs.join(",")}` : null;
  },
  4,
  (states) => {
    for (const card of cards()) if (states[card.dataset.job]) update(card, states[card.dataset.job]);
    return cards().length > 0;
  },
);

// A picture of a job that is not staged yet does not exist.
for (const picture of document.querySelectorAll(".poster img")) {
  const hide = () => picture.classList.add("missing");
  if (picture.complete && picture.naturalWidth === 0) hide();
  picture.addEventListener("error", hide);
}

const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
for (const poster of calm ? [] : document.querySelectorAll(".card[data-status=succeeded] .poster")) {
  let preview = null;
  poster.addEventListener("mouseenter", () => {
    preview = document.createElement("video");
    preview.muted = preview.loop = preview.playsInline = true;
    preview.src = `job/${poster.closest(".card").dataset.job}/video.mp4`;
    poster.append(preview);
    preview.play().catch(() => {});
  });
  poster.addEventListener("mouseleave", () => {
    if (preview) {
      preview.removeAttribute("src");
      preview.load();
      preview.remove();
      preview = null;
    }
  });
}
