// Keys kept like passwords: found by their first characters, compared by bcrypt.
import bcrypt from "bcrypt";
import express from "express";
import pg from "pg";
import { serve } from "./serve.mjs";

const COST = 10;
const PREFIX = 16;

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 });
await pool.query("create table if not exists bcrypt_keys (prefix text primary key, hash text not null)");
await pool.query("insert into bcrypt_keys values ($1, $2) on conflict do nothing", [
  process.env.KEY.slice(0, PREFIX),
  await bcrypt.hash(process.env.KEY, COST),
]);

async function authenticate(req, res, next) {
  const [scheme, key] = (req.get("authorization") ?? "").split(" ");
  if (scheme !== "Bearer" || !key) {
    return res.sendStatus(401);
  }
  const { rows } = await pool.query({
    name: "find",
    text: "select hash from bcrypt_keys where prefix = $1",
    values: [key.slice(0, PREFIX)],
  });
  if (rows.length === 0 || !(await bcrypt.compare(key, rows[0].hash))) {
    return res.sendStatus(401);
  }
  next();
}

const app = express();
app.disable("x-powered-by");
app.disable("etag");
app.get("/", authenticate, (req, res) => res.type("text").send("ok"));
serve(app);
