// Queue the page's graph and wait for its end: "ok", or the error as JSON.
async () => {
  const ended = new Promise((end) => {
    const once = { once: true };
    app.api.addEventListener("execution_success", () => end("ok"), once);
    app.api.addEventListener("execution_error", (e) => end(JSON.stringify(e.detail)), once);
  });
  await app.queuePrompt(0);
  return await ended;
}
