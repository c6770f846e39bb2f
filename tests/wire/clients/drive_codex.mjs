// The Codex CLI, `codex exec`, with a provider of its own: Responses, streamed, with its tools, one of which it really runs.
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { KEY, STREAMED, URL, command, run } from "./cases.mjs";

const home = `${process.cwd()}/home`;

// What no server of chat has: tools that run at the provider.
const PLAIN = ["-c", 'web_search="disabled"', "-c", "features.multi_agent=false"];

async function codex(prompt, model = "dialects", key = KEY, more = []) {
  const provider = ['name = "gateway"', `base_url = "${URL}"`, 'env_key = "CODEX_KEY"', 'wire_api = "responses"'];
  const retries = ["request_max_retries = 0", "stream_max_retries = 0"];
  mkdirSync(home, { recursive: true });
  writeFileSync(`${home}/config.toml`, ['model_provider = "gateway"', "[model_providers.gateway]", ...provider, ...retries].join("\n"));
  const words = ["exec", "--json", "--skip-git-repo-check", "-s", "danger-full-access", "-m", model, ...more, prompt];
  const lines = (await command("codex", words, { CODEX_HOME: home, HOME: home, CODEX_KEY: key })).split("\n");
  return lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
}

const items = (events, type) => events.filter((one) => one.type === "item.completed" && one.item.type === type).map((one) => one.item);
const failure = (events) => events.find((one) => one.type === "turn.failed").error.message;

async function says(...options) {
  assert.deepEqual(items(await codex(STREAMED, ...options), "agent_message").map((item) => item.text), [STREAMED]);
}

async function calls(...options) {
  const call = { call: "exec_command", arguments: { cmd: "echo $((40 + 2)) from a tool" } };
  const events = await codex(JSON.stringify(call), ...options);
  assert.equal(items(events, "command_execution")[0].aggregated_output, "42 from a tool\n");
  assert.match(items(events, "agent_message")[0].text, /42 from a tool/);
}

await run({
  // The model speaks Responses; under `chat` and `tools`, chat only.
  stream: () => says(),
  "tools stream": () => calls(),
  chat: () => says("scripted", KEY, PLAIN),
  tools: () => calls("scripted", KEY, PLAIN),
  "unknown model": async () => assert.match(failure(await codex("x", "nope")), /does not exist/),
  "wrong key": async () => assert.match(failure(await codex("x", "dialects", "sk-wrong")), /401 .*Incorrect API key/),
});
