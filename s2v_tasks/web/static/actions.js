// Actions of a job: cancel, start again, render again from a clip.
import { send } from "./send.js";

const job = document.getElementById("job").dataset.job;
const problem = document.getElementById("action-problem");
const dialog = document.getElementById("confirm-cancel");

async function act(name, body) {
  problem.textContent = "";
  try {
    return await send(`${job}/${name}`, body);
  } catch (error) {
    problem.textContent = error.message;
    return null;
  }
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
  else if (button.dataset.action === "retry") {
    button.disabled = true;
    const answer = await act("retry");
    if (answer) openRun(answer);
    else button.disabled = false;
  }
});

// The form appears with the plan of the job.
document.addEventListener("submit", async (event) => {
  if (event.target.id !== "rerun") return;
  event.preventDefault();
  const values = Object.fromEntries([...new FormData(event.target)].filter(([, value]) => value !== ""));
  for (const name of ["from_clip", "base_seed", "sample_steps", "sample_guide_scale"]) {
    if (name in values) values[name] = Number(values[name]);
  }
  openRun(await act("rerun", values));
});
