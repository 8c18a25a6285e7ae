// What many services implement: SHA-256 and a query.
import { createHash } from "node:crypto";
import express from "express";
import pg from "pg";
import { serve } from "./serve.mjs";

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 });

const FIND = {
  name: "find",
  text: `select consumer_id, name, scopes from api_keys
    where key_hash = $1 and is_active and revoked_at is null
      and (expires_at is null or expires_at > now())`,
};

async function authenticate(req, res, next) {
  const [scheme, key] = (req.get("authorization") ?? "").split(" ");
  if (scheme !== "Bearer" || !key) {
    return res.sendStatus(401);
  }
  const hash = createHash("sha256").update(key).digest();
  const { rows } = await pool.query({ ...FIND, values: [hash] });
  if (rows.length === 0) {
    return res.sendStatus(401);
  }
  req.caller = rows[0];
  next();
}

const app = express();
app.disable("x-powered-by");
app.disable("etag");
app.get("/", authenticate, (req, res) => res.type("text").send("ok"));
serve(app);
