// The Anthropic SDK for Node: messages.
import { READ_FILE, drive, readFile, shown, take } from "./driving.mjs";
import { client } from "./recipe.mjs";

const user = (content) => ({ role: "user", content });
const textOf = (answer) => answer.content.filter((block) => block.type === "text").map((block) => block.text).join("");
const { name, description, schema: input_schema } = READ_FILE;
const reasoning = (thinking) => (thinking ? { thinking: { type: "enabled", budget_tokens: 1024 } } : {});

async function messages({ prompt, ...more }) {
  return textOf(await client.messages.create({ model: "auto", max_tokens: 500, messages: [user(prompt)], ...more }));
}

async function messages_stream({ prompt }) {
  const stream = client.messages.stream({ model: "auto", max_tokens: 500, messages: [user(prompt)] });
  const pieces = [];
  stream.on("text", (piece) => pieces.push(shown(piece)));
  await stream.finalMessage();
  return pieces;
}

async function messages_tools({ prompt, thinking }) {
  const said = [user(prompt)];
  for (;;) {
    const answer = await client.messages.create({
      model: "auto", max_tokens: 2000, messages: said, tools: [{ name, description, input_schema }], ...reasoning(thinking),
    });
    if (answer.stop_reason !== "tool_use") return textOf(answer);
    said.push({ role: "assistant", content: answer.content });
    const calls = answer.content.filter((block) => block.type === "tool_use");
    said.push(user(calls.map(({ id, input }) => ({ type: "tool_result", tool_use_id: id, content: readFile(input) }))));
  }
}

async function messages_turns({ prompts, thinking }) {
  const said = [];
  const texts = [];
  for (const prompt of prompts) {
    said.push(user(prompt));
    const answer = await client.messages.create({
      model: "auto", max_tokens: 2000, messages: said, ...reasoning(thinking),
    });
    said.push({ role: "assistant", content: answer.content });
    texts.push(textOf(answer));
  }
  return texts;
}

async function messages_cancel({ prompt }) {
  const options = { model: "auto", max_tokens: 500, messages: [user(prompt)], stream: true };
  return (await take(8, await client.messages.create(options))).length;
}

async function count_tokens({ prompt }) {
  return (await client.messages.countTokens({ model: "auto", messages: [user(prompt)] })).input_tokens;
}

async function models() {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  return ids;
}

await drive({
  messages, messages_stream, messages_tools, messages_turns, messages_cancel, count_tokens, models,
});
