// The opencode command line, with a provider of its own for OpenAI-compatible APIs. It streams, and sends its tools along.
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { KEY, STREAMED, URL, command, run } from "./cases.mjs";

const home = `${process.cwd()}/home`;

async function opencode(prompt, model = "relayed", apiKey = KEY) {
  const gateway = { npm: "@ai-sdk/openai-compatible", options: { baseURL: URL, apiKey }, models: { [model]: {} } };
  mkdirSync(home, { recursive: true });
  writeFileSync("opencode.json", JSON.stringify({ provider: { gateway } }));
  return command("opencode", ["run", "-m", `gateway/${model}`, prompt], { HOME: home, XDG_DATA_HOME: home });
}

await run({
  // What it asks is put into quotes of its own.
  stream: async () => assert.ok((await opencode(STREAMED.replaceAll('"', ""))).includes(STREAMED.replaceAll('"', ""))),
  "unknown model": async () => assert.match(await opencode("x", "nope"), /does not exist/),
  "wrong key": async () => assert.match(await opencode("x", "relayed", "sk-wrong"), /Incorrect API key/),
});
