// Listens, prints the port, and exits with the parent process.
export function serve(app) {
  const server = app.listen(0, "127.0.0.1", () => {
    console.log(JSON.stringify({ port: server.address().port }));
  });
  process.stdin.resume().on("end", () => process.exit(0));
}
