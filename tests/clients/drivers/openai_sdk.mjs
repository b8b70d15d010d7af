// The OpenAI SDK for Node: chat completions and responses.
import { READ_FILE, drive, readFile, shown, take } from "./driving.mjs";
import { client } from "./recipe.mjs";

const user = (content) => ({ role: "user", content });
const { name, description, schema: parameters } = READ_FILE;
const definition = { name, description, parameters, strict: true };

async function chat({ prompt, ...more }) {
  const answer = await client.chat.completions.create({ model: "auto", messages: [user(prompt)], ...more });
  return answer.choices[0].message.content;
}

async function chat_stream({ prompt }) {
  const stream = client.chat.completions.stream({ model: "auto", messages: [user(prompt)] });
  const pieces = [];
  for await (const chunk of stream) pieces.push(shown(chunk.choices[0].delta.content ?? ""));
  return pieces;
}

// The SDK's own loop runs the tool.
async function chat_tools({ prompt }) {
  const tool = { ...definition, function: readFile, parse: JSON.parse };
  const runner = client.chat.completions.runTools({
    model: "auto", messages: [user(prompt)], tools: [{ type: "function", function: tool }],
  });
  return runner.finalContent();
}

async function chat_turns({ prompts }) {
  const messages = [];
  for (const prompt of prompts) {
    messages.push(user(prompt));
    messages.push((await client.chat.completions.create({ model: "auto", messages })).choices[0].message);
  }
  return messages.filter((message) => message.role === "assistant").map((message) => message.content);
}

async function chat_cancel({ prompt }) {
  const stream = await client.chat.completions.create({ model: "auto", messages: [user(prompt)], stream: true });
  return (await take(5, stream)).length;
}

async function responses({ prompt, ...more }) {
  return (await client.responses.create({ model: "auto", input: prompt, ...more })).output_text;
}

async function responses_stream({ prompt }) {
  const stream = client.responses.stream({ model: "auto", input: prompt });
  const pieces = [];
  for await (const event of stream) if (event.type === "response.output_text.delta") pieces.push(shown(event.delta));
  return pieces;
}

async function responses_tools({ prompt }) {
  const input = [user(prompt)];
  for (;;) {
    const response = await client.responses.create({ model: "auto", input, tools: [{ type: "function", ...definition }] });
    const calls = response.output.filter((item) => item.type === "function_call");
    if (calls.length === 0) return response.output_text;
    input.push(...response.output);
    for (const { call_id, arguments: text } of calls) {
      input.push({ type: "function_call_output", call_id, output: readFile(JSON.parse(text)) });
    }
  }
}

// Continue by the history, by its sealed reasoning too, or by the id of the last response.
async function responses_turns({ prompts, by }) {
  let more = by === "sealed" ? { store: false, include: ["reasoning.encrypted_content"] } : {};
  let input = [];
  const texts = [];
  for (const prompt of prompts) {
    input.push(user(prompt));
    const response = await client.responses.create({ model: "auto", input, ...more });
    if (by === "id") [input, more] = [[], { previous_response_id: response.id }];
    else input.push(...response.output);
    texts.push(response.output_text);
  }
  return texts;
}

async function responses_cancel({ prompt }) {
  return (await take(8, await client.responses.create({ model: "auto", input: prompt, stream: true }))).length;
}

async function models() {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  return ids;
}

await drive({
  chat, chat_stream, chat_tools, chat_turns, chat_cancel, models,
  responses, responses_stream, responses_tools, responses_turns, responses_cancel,
});
