// Actions of a job: cancel, start again, render again from a clip.
import { send } from "./send.js";

const job = document.getElementById("job").dataset.job;
const problem = document.getElementById("action-problem");
const dialog = document.getElementById("confirm-cancel");
const rejection = document.getElementById("rejection-dialog");

async function act(name, body) {
  problem.textContent = "";
  try {
    return await send(`${job}/${name}`, body);
  } catch (error) {
    problem.textContent = error.message;
    return null;
  }
}

// The part that the page shows, so that no other one is approved which came meanwhile.
function judged() {
  const index = document.querySelector(".approval").dataset.clip;
  return { clip_index: index === "" ? null : Number(index) };
}

// The fields of a form that are filled, with numbers as numbers, but not the seed: JavaScript would round it.
function filled(form) {
  const values = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
  for (const name of ["from_clip", "sample_steps", "sample_guide_scale"]) {
    if (name in values) values[name] = Number(values[name]);
  }
  return values;
}

async function sendRejection(form) {
  rejection.close();
  if (!document.querySelector(".approval")) {
    problem.textContent = "It does not wait for approval any more.";
    return;
  }
  const values = { ...judged(), ...filled(form) };
  if ("from_clip" in values) values.from_clip -= 1; // people count from 1
  if (!(await act("reject", values))) return;
  form.reset();
  document.querySelector(".approval .row").textContent = "Rejected. The job ends in some seconds.";
}

function openRun(answer) {
  if (answer) location.assign(`../videos/of-run?dag_id=speech_to_video&run_id=${encodeURIComponent(answer.run_id)}`);
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-action]");
  if (!button) return;
  if (button.dataset.action === "ask-cancel") dialog.showModal();
  else if (button.dataset.action === "cancel") {
    dialog.close();
    if (await act("cancel")) location.reload();
  } else if (button.dataset.action === "keep") dialog.close();
  else if (button.dataset.action === "approve") {
    button.disabled = true;
    if (await act("approve", judged())) button.closest(".row").textContent = "Approved. The job goes on in some seconds.";
    else button.disabled = false;
  } else if (button.dataset.action === "ask-reject") rejection.showModal();
  else if (button.dataset.action === "keep-waiting") rejection.close();
  else if (button.dataset.action === "retry") {
    button.disabled = true;
    const answer = await act("retry");
    if (answer) openRun(answer);
    else button.disabled = false;
  }
});

// The form appears with the plan of the job.
document.addEventListener("submit", async (event) => {
  if (event.target.id !== "rerun" && event.target.id !== "rejection") return;
  event.preventDefault();
  if (event.target.id === "rejection") await sendRejection(event.target);
  else openRun(await act("rerun", filled(event.target)));
});
