// The API keys of the widespread Express tutorial, hashed by bcrypt: makes keys, or says which are
// let in.
//
// express.js URL make: a JSON list of keys, with what became of each
// express.js URL verify KEY…: a JSON list of true and false

const { randomBytes } = require('node:crypto');
const bcrypt = require('bcrypt');
const express = require('express');
const { Pool } = require('pg');

const [url, command, ...keys] = process.argv.slice(2);
const pool = new Pool({ connectionString: url });

async function createKey(userId, name) {
  const key = randomBytes(32).toString('hex');
  const hash = await bcrypt.hash(key, 10);
  await pool.query(
    'INSERT INTO api_keys (key_hash, user_id, name) VALUES ($1, $2, $3)',
    [hash, userId, name],
  );
  return key;
}

async function authenticate(req, res, next) {
  const key = req.header('x-api-key');
  if (!key) return res.status(401).json({ error: 'API key required' });
  const { rows } = await pool.query('SELECT * FROM api_keys WHERE is_active');
  for (const row of rows) {
    if (await bcrypt.compare(key, row.key_hash)) {
      await pool.query('UPDATE api_keys SET last_used = now() WHERE id = $1', [row.id]);
      req.userId = row.user_id;
      return next();
    }
  }
  res.status(401).json({ error: 'Invalid API key' });
}

async function make() {
  await pool.query(`CREATE TABLE api_keys (
    id serial PRIMARY KEY,
    key_hash text NOT NULL,
    user_id integer NOT NULL,
    name text,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used timestamptz,
    is_active boolean NOT NULL DEFAULT true,
    rate_limit integer DEFAULT 1000
  )`);
  const made = [];
  for (const [userId, state] of [[17, 'works'], [18, 'works'], [17, 'revoked']]) {
    const key = await createKey(userId, 'Laptop, "old"');
    made.push({ key, consumer: String(userId), state });
  }
  await pool.query('UPDATE api_keys SET is_active = false WHERE id = 3');
  return made;
}

async function verify() {
  const app = express();
  app.get('/', authenticate, (req, res) => res.json({ user: req.userId }));
  const server = await new Promise((done) => {
    const server = app.listen(0, '127.0.0.1', () => done(server));
  });
  const letIn = [];
  for (const key of keys) {
    const address = `http://127.0.0.1:${server.address().port}/`;
    const response = await fetch(address, { headers: { 'x-api-key': key } });
    letIn.push(response.status === 200);
  }
  server.close();
  return letIn;
}

(async () => {
  const answer = command === 'make' ? await make() : await verify();
  await pool.end();
  console.log(JSON.stringify(answer));
})();
