// A static key in memory, and limits by key: no records, no revocation without a restart.
import bearerAuth from "@fastify/bearer-auth";
import rateLimit from "@fastify/rate-limit";
import Fastify from "fastify";

const app = Fastify();
await app.register(bearerAuth, { keys: new Set([process.env.KEY]) });
await app.register(rateLimit, {
  max: 1_000_000_000,
  timeWindow: "1 minute",
  // After authentication, so that only valid keys are counted.
  hook: "preHandler",
  keyGenerator: (request) => request.headers.authorization,
});
app.get("/", async () => "ok");
await app.listen({ host: "127.0.0.1", port: 0 });
console.log(JSON.stringify({ port: app.server.address().port }));
process.stdin.resume().on("end", () => process.exit(0));
