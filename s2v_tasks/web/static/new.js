// The form of a new job: uploads files as soon as they are chosen, shows plan and cost, and starts the job.
import { send, upload } from "./send.js";

const form = document.getElementById("new");
const problem = document.getElementById("problem");
const start = document.getElementById("start");
// Not the seed: a number of JavaScript would round it.
const NUMBERS = ["sample_steps", "sample_guide_scale", "infer_frames", "num_clip", "max_retakes", "max_cost"];
let planned = 0;
let uploading = 0;

function fields() {
  const shown = Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string" && value.trim()));
  const values = { ...JSON.parse(form.dataset.others), ...shown };
  for (const name of NUMBERS) if (name in values) values[name] = Number(values[name]);
  if (values.labels) {
    values.labels = Object.fromEntries(
      values.labels.trim().split(/\s+/).map((pair) => {
        const [name, ...rest] = pair.split("=");
        return [name, rest.join("=")];
      }),
    );
  }
  return values;
}

function hidePlan() {
  document.getElementById("plan").hidden = true;
  document.getElementById("warnings").replaceChildren();
  document.getElementById("start-note").textContent = "";
}

function show(plan) {
  const list = document.getElementById("plan");
  list.replaceChildren();
  const rows = { Cost: plan.cost, "GPU time": plan.gpu_time, Length: plan.duration, Clips: plan.num_clip, Size: plan.size };
  for (const [name, value] of Object.entries(rows)) {
    const row = document.createElement("div");
    const title = document.createElement("dt");
    const text = document.createElement("dd");
    title.textContent = name;
    text.textContent = value;
    row.append(title, text);
    list.append(row);
  }
  list.hidden = false;
  const warnings = document.getElementById("warnings");
  warnings.replaceChildren();
  for (const warning of plan.warnings) {
    const line = document.createElement("p");
    line.className = "notice warning";
    line.textContent = warning;
    warnings.append(line);
  }
  problem.textContent = plan.problem || "";
}

async function plan() {
  const { prompt, labels, job_id: name, ...values } = fields();
  start.disabled = true;
  const number = ++planned;
  const state = document.getElementById("plan-state");
  state.hidden = false;
  if (uploading || !values.image_uri || !values.audio_uri) {
    hidePlan();
    state.textContent = "Choose a picture and speech: the plan and its cost appear here.";
    return;
  }
  state.textContent = "The plan is being made …";
  try {
    const answer = await send("new/plan", values);
    if (number !== planned) return;
    show(answer);
    state.hidden = true;
    start.disabled = Boolean(answer.problem);
    document.getElementById("start-note").textContent = answer.problem ? "" : `Expected cost: ${answer.cost}`;
  } catch (error) {
    if (number !== planned) return;
    state.textContent = "There is no plan.";
    hidePlan();
    problem.textContent = error.message;
  }
}

async function choose(input) {
  const file = input.files[0];
  if (!file) return;
  const isCurrent = () => input.files[0] === file; // no other file was chosen in the meantime
  const bar = document.getElementById(`${input.id}-progress`);
  const target = form.elements[input.dataset.field];
  const shown = document.getElementById(input.id === "image" ? "preview" : "listen");
  shown.src = URL.createObjectURL(file);
  shown.hidden = false;
  target.value = "";
  bar.hidden = false;
  problem.textContent = "";
  start.disabled = true;
  uploading += 1;
  try {
    const uri = await upload(file, (share) => {
      bar.value = share;
    });
    if (isCurrent()) target.value = uri;
  } catch (error) {
    if (isCurrent()) {
      problem.textContent = error.message;
      bar.hidden = true;
      shown.hidden = true;
      input.value = ""; // no file is chosen: the message goes with the next file
    }
  } finally {
    uploading -= 1;
    if (isCurrent()) bar.hidden = true;
  }
  await plan();
}

let timer = null;
// Not "change": that comes when a field loses the focus, for example to a click on Start, which would be lost.
form.addEventListener("input", (event) => {
  if (event.target.type === "file") choose(event.target);
  else if (!["prompt", "labels", "job_id"].includes(event.target.name)) {
    clearTimeout(timer);
    problem.textContent = ""; // it was about the earlier fields
    start.disabled = true;
    timer = setTimeout(plan, 400);
  }
});
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!form.elements.prompt.value.trim()) {
    problem.textContent = "The prompt is empty: describe the picture and how the person speaks.";
    form.elements.prompt.focus();
    return;
  }
  start.disabled = true;
  problem.textContent = "";
  try {
    const answer = await send("new/start", fields());
    location.assign(`videos/of-run?dag_id=speech_to_video&run_id=${encodeURIComponent(answer.run_id)}`);
  } catch (error) {
    problem.textContent = error.message;
    start.disabled = false;
  }
});

// After "back" the browser shows the names of the chosen files, but not their addresses: they are uploaded again.
addEventListener("pageshow", (event) => {
  const chosen = [...form.querySelectorAll("[type=file]")].filter((input) => !event.persisted && input.files.length);
  chosen.forEach(choose);
  if (!chosen.length) plan();
});
