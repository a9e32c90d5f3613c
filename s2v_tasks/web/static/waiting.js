// Look again every three seconds while the page is visible, until the job has begun.
setInterval(() => {
  if (!document.hidden) location.reload();
}, 3000);
