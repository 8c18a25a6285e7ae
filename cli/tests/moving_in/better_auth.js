// better-auth with its plugin for API keys: makes keys, or says which are let in.
//
// better_auth.js URL make: a JSON list of keys, with what became of each
// better_auth.js URL verify KEY…: a JSON list of true and false

const { betterAuth } = require('better-auth');
const { getMigrations } = require('better-auth/db/migration');
const { apiKey } = require('@better-auth/api-key');
const { Pool } = require('pg');

const [url, command, ...keys] = process.argv.slice(2);
const pool = new Pool({ connectionString: url });
const options = {
  baseURL: 'http://localhost',
  secret: 'a secret of at least 32 characters, for tests',
  database: pool,
  emailAndPassword: { enabled: true },
  plugins: [apiKey()],
  logger: { disabled: true },
  telemetry: { enabled: false },
};
const auth = betterAuth(options);

async function make() {
  const { runMigrations } = await getMigrations(options);
  await runMigrations();
  const made = [];
  for (const [number, state] of [[1, 'works'], [2, 'works'], [3, 'revoked']]) {
    const { user } = await auth.api.signUpEmail({
      body: { name: `user ${number}`, email: `${number}@a.example`, password: 'a long password' },
    });
    const created = await auth.api.createApiKey({ body: { name: 'ci', userId: user.id } });
    if (state === 'revoked') {
      await auth.api.updateApiKey({ body: { keyId: created.id, userId: user.id, enabled: false } });
    }
    made.push({ key: created.key, consumer: user.id, state });
  }
  return made;
}

async function verify(key) {
  const { valid } = await auth.api.verifyApiKey({ body: { key } });
  return valid;
}

(async () => {
  const answer = command === 'make' ? await make() : await Promise.all(keys.map(verify));
  await pool.end();
  console.log(JSON.stringify(answer));
})();
