// Continue's command line, `cn -p`, with a config.yaml of its own. It streams, and sends its tools along.
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { KEY, STREAMED, URL, command, run } from "./cases.mjs";

async function cn(prompt, model = "relayed", apiKey = KEY) {
  const entry = { name: model, provider: "openai", model, apiBase: URL, apiKey, roles: ["chat"] };
  mkdirSync("continue", { recursive: true });
  // JSON is YAML.
  writeFileSync("continue/config.yaml", JSON.stringify({ name: "test", version: "1.0.0", schema: "v1", models: [entry] }));
  return (await command("cn", ["-p", prompt, "--config", "continue/config.yaml"], { HOME: `${process.cwd()}/continue` })).trim();
}

await run({
  stream: async () => assert.equal(await cn(STREAMED), STREAMED),
  "unknown model": async () => assert.match(await cn("x", "nope"), /404 .*does not exist/),
  "wrong key": async () => assert.match(await cn("x", "relayed", "sk-wrong"), /401 /),
});
