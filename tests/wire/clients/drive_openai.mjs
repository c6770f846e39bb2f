// openai-node, any major: whole, streamed, tools, JSON, vectors, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { KEY, PARAMETERS, PERSON, PERSON_JSON, STREAMED, TEXT, URL, near, run } from "./cases.mjs";

const options = { baseURL: URL, timeout: 30_000, maxRetries: 0 };
const client = new OpenAI({ ...options, apiKey: KEY });
const stranger = new OpenAI({ ...options, apiKey: "sk-wrong" });
const tools = [{ type: "function", function: { name: "save_person", parameters: PARAMETERS } }];

const ask = (text, fields = {}, from = client) =>
  from.chat.completions.create({ model: "relayed", messages: [{ role: "user", content: text }], ...fields });

async function streamed(text, fields = {}) {
  const chunks = [];
  for await (const chunk of await ask(text, { ...fields, stream: true })) chunks.push(chunk);
  return chunks;
}

const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

await run({
  models: async () => {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert.ok(names.includes("relayed"));
  },
  chat: async () => {
    const answer = await ask(TEXT);
    assert.equal(answer.choices[0].message.content, TEXT);
    assert.ok(answer._request_id.startsWith("req_"));
  },
  cached: async () => {
    const chunks = await streamed(TEXT, { stream_options: { include_usage: true } });
    assert.equal(textOf(chunks), TEXT);
    assert.ok(chunks.at(-1).usage.total_tokens > 0);
  },
  stream: async () => assert.equal(textOf(await streamed(STREAMED)), STREAMED),
  tools: async () => {
    const [call] = (await ask(PERSON_JSON, { model: "scripted", tools })).choices[0].message.tool_calls;
    assert.deepEqual(JSON.parse(call.function.arguments), PERSON);
  },
  "tools stream": async () => {
    const runner = client.chat.completions.stream({
      model: "scripted",
      messages: [{ role: "user", content: PERSON_JSON }],
      tools,
    });
    const [call] = (await runner.finalChatCompletion()).choices[0].message.tool_calls;
    assert.deepEqual([call.id, JSON.parse(call.function.arguments)], ["call_1", PERSON]);
  },
  json: async () => {
    const answer = await ask(PERSON_JSON, { response_format: { type: "json_object" } });
    assert.deepEqual(JSON.parse(answer.choices[0].message.content), PERSON);
  },
  embeddings: async () => near((await client.embeddings.create({ model: "scripted", input: "x" })).data[0].embedding),
  "unknown model": () => assert.rejects(ask("x", { model: "nope" }), OpenAI.NotFoundError),
  "wrong key": () => assert.rejects(ask("x", {}, stranger), OpenAI.AuthenticationError),
});
