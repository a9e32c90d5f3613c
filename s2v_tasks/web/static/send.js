const LOGGED_OUT = "Your login has ended: log in again in another tab, then repeat this here.";

// The sentence for an answer without one: the page of a proxy in front of Airflow.
function refusal(status) {
  if (status === 413) return "A proxy in front of Airflow refuses the file as too large (413): its administrator can raise the limit.";
  if ([502, 503, 504].includes(status)) return `Airflow does not answer its proxy (${status}): try again in a minute.`;
  return `The server answered ${status}.`;
}

// Send an action as JSON; the answer's sentence becomes the error.
export async function send(address, body) {
  const answer = await fetch(address, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body ?? {}),
  });
  if (answer.status === 401) throw new Error(LOGGED_OUT);
  const result = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(result.detail || refusal(answer.status));
  return result;
}

export function upload(file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `new/upload?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded / Math.max(event.total, 1)));
    request.addEventListener("load", () => {
      let result = {};
      try {
        result = JSON.parse(request.responseText);
      } catch {
        // The status says enough.
      }
      if (request.status === 401) reject(new Error(LOGGED_OUT));
      else if (request.status < 300) resolve(result.uri);
      else reject(new Error(result.detail || refusal(request.status)));
    });
    request.addEventListener("error", () => reject(new Error("The upload was interrupted: try again.")));
    request.send(file);
  });
}
