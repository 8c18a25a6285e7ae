// The plugin's own way: auth.api.verifyApiKey, behind the smallest server there is.
import http from "node:http";
import { apiKey } from "@better-auth/api-key";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import pg from "pg";

const options = {
  baseURL: "http://127.0.0.1",
  secret: "only for this benchmark, and of a decent length",
  database: new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 }),
  // It would print every refused key.
  logger: { disabled: true },
  emailAndPassword: { enabled: true },
  plugins: [
    apiKey({
      rateLimit: { enabled: true, timeWindow: 60_000, maxRequests: 1_000_000_000 },
    }),
  ],
};
await (await getMigrations(options)).runMigrations();
const auth = betterAuth(options);
const email = `${process.pid}@example.com`;
const { user } = await auth.api.signUpEmail({
  body: { name: "acme", email, password: "correct horse battery staple" },
});
const { key } = await auth.api.createApiKey({ body: { name: "bench", userId: user.id } });

const server = http.createServer(async (request, response) => {
  const [scheme, key] = (request.headers.authorization ?? "").split(" ");
  let status = 401;
  if (scheme === "Bearer" && key) {
    const { valid } = await auth.api.verifyApiKey({ body: { key } });
    status = valid ? 200 : 401;
  }
  response.writeHead(status, { "content-type": "text/plain" }).end(status === 200 ? "ok" : "no");
});
server.listen(0, "127.0.0.1", () => {
  console.log(JSON.stringify({ port: server.address().port, key }));
});
process.stdin.resume().on("end", () => process.exit(0));
