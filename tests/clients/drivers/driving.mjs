// The loop of the Node drivers. Each line of stdin is a command in JSON, and each line of stdout is its result.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

// The tool of the tests, as a JSON Schema.
export const READ_FILE = {
  name: "read_file",
  description: "Read a text file",
  schema: {
    type: "object",
    properties: { path: { type: "string" } },
    required: ["path"],
    additionalProperties: false,
  },
};

export const readFile = ({ path }) => readFileSync(path, "utf8");

// Libraries print warnings. Only results belong on stdout.
console.log = console.info = console.error;

// Print that a piece of a text has arrived, and return it.
export function shown(text) {
  process.stdout.write(`${JSON.stringify({ shown: text })}\n`);
  return text;
}

// Run one scenario for each command, and print what it returned or threw.
export async function drive(scenarios) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { do: name, ...options } = JSON.parse(line);
    let result;
    try {
      result = { result: await scenarios[name](options) };
    } catch (error) {
      const names = [];
      for (let kind = error?.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) names.push(kind.name);
      const status = error?.status ?? error?.statusCode ?? null;
      result = { raised: names, status, text: String(error?.message ?? error).slice(0, 500) };
    }
    process.stdout.write(`${JSON.stringify(result)}\n`);
  }
}

// Take the first items of a stream.
export async function take(count, stream) {
  const items = [];
  for await (const item of stream) {
    items.push(item);
    if (items.length === count) break;
  }
  return items;
}
