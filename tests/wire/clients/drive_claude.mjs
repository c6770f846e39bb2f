// Claude Code, `claude -p`: Anthropic's Messages, streamed, with its tools, one of which it really runs.
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { KEY, STREAMED, URL, command, run } from "./cases.mjs";

const home = `${process.cwd()}/home`;

async function claude(prompt, model = "dialects", key = KEY) {
  mkdirSync(home, { recursive: true });
  const env = { HOME: home, ANTHROPIC_BASE_URL: URL.replace(/\/v1$/, ""), ANTHROPIC_AUTH_TOKEN: key };
  const quiet = { ANTHROPIC_API_KEY: "", CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1" };
  const words = ["-p", "--output-format", "json", "--model", model, "--allowedTools", "Bash", "Read", "--", prompt];
  const said = await command("claude", words, { ...env, ...quiet });
  return JSON.parse(said.split("\n").find((line) => line.startsWith('{"')));
}

await run({
  stream: async () => {
    const done = await claude(STREAMED);
    assert.deepEqual([done.result, done.is_error, done.usage.output_tokens], [STREAMED, false, 4]);
  },
  "tools stream": async () => {
    writeFileSync("told.txt", "42 from a tool");
    const call = { call: "Bash", arguments: { command: "cat told.txt", description: "Tell" } };
    const done = await claude(JSON.stringify(call));
    assert.deepEqual([done.result, done.num_turns], ["42 from a tool", 2]);
  },
  "unknown model": async () => assert.match((await claude("x", "nope")).result, /issue with the selected model/),
  "wrong key": async () => assert.match((await claude("x", "dialects", "sk-wrong")).result, /401 Incorrect API key/),
});
