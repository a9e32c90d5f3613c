// Actions of a job: cancel, start again, render again from a clip.
import { announce } from "./live.js";
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
    problem.scrollIntoView({ block: "nearest" }); // the button may be far above
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

// An answer can take seconds: Airflow takes none right after the question.
async function answer(name, body, done) {
  const row = document.querySelector(".approval .row");
  const buttons = row.querySelectorAll("button");
  for (const button of buttons) button.disabled = true;
  const note = Object.assign(document.createElement("span"), { className: "muted", textContent: "Sending the answer …" });
  row.append(note);
  const sent = await act(name, body);
  note.remove();
  if (sent) {
    row.textContent = done;
    announce(done);
  } else for (const button of buttons) button.disabled = false;
  return sent;
}

function askRejection() {
  rejection.querySelector("[name=from_clip]").placeholder = (judged().clip_index ?? 0) + 1;
  rejection.showModal();
}

async function sendRejection(form) {
  rejection.close();
  if (!document.querySelector(".approval .row")) {
    problem.textContent = "It does not wait for approval any more.";
    return;
  }
  const values = { ...judged(), ...filled(form) };
  if ("from_clip" in values) values.from_clip -= 1; // people count from 1
  if (await answer("reject", values, "Rejected. The job ends in some seconds.")) form.reset();
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
    await answer("approve", judged(), "Approved. The job goes on in some seconds.");
  } else if (button.dataset.action === "ask-reject") askRejection();
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
