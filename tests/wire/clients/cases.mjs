// What every Node client's script shares: where the gateway is, what is asked, and one line of JSON for each case.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";

export const URL = process.env.GATEWAY_URL;
export const KEY = process.env.GATEWAY_KEY;
export const TEXT = `One "two" drei ✓ 你好 🦊 ${randomUUID()}`;
export const STREAMED = "streamed " + TEXT;
export const PERSON = { name: "Ann Ünal", age: 31 };
export const PERSON_JSON = JSON.stringify(PERSON);
export const PARAMETERS = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};

export function near(vector) {
  const wanted = [0.25, -1.5, 3.0, 1e-3];
  assert.equal(vector.length, wanted.length);
  wanted.forEach((value, index) => assert.ok(Math.abs(vector[index] - value) < 1e-6));
}

// What an installed command says on both its outputs; killed after a minute.
export function command(name, words, env) {
  return new Promise((resolve) => {
    // Some believe PWD more than the folder they were started in.
    const options = { env: { ...process.env, PWD: process.cwd(), ...env }, stdio: ["ignore", "pipe", "pipe"], timeout: 60_000 };
    const child = spawn(`node_modules/.bin/${name}`, words, options);
    const said = [];
    child.stdout.on("data", (data) => said.push(data));
    child.stderr.on("data", (data) => said.push(data));
    child.on("close", () => resolve(Buffer.concat(said).toString()));
  });
}

export async function run(cases) {
  for (const [name, work] of Object.entries(cases)) {
    let said = "ok";
    try {
      await work();
    } catch (error) {
      said = `${error.constructor.name}: ${error.message}`.slice(0, 300);
    }
    console.log(JSON.stringify({ case: name, said }));
  }
}
