// Writes the call that the page makes for a shell or for Python. Any text stays what it is:
// a shell gets JSON in a here-document, where nothing is expanded and no line is its end.

const PATH = "rerank.v1.RerankService/Rerank";
// Controls, and what turns the direction of text: in a program they are written out, and not obeyed.
const UNSEEN = /[\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** The tools by name; each takes {message, url, target, secure, token} and returns the text to run. */
export const TOOLS = { curl, buf, grpcurl, python };

const escaped = (json) => json.replace(UNSEEN, (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`);

const hereDocument = (command, message) => `${command} <<'JSON'\n${escaped(pretty(message))}\nJSON\n`;

/** Writes a request with one document a line. */
function pretty({ documents, ...fields }) {
  const inner = JSON.stringify(fields, null, 2).slice(1, -2);
  const texts = documents.map((each) => `    ${JSON.stringify(each)}`).join(",\n");
  return `{${inner},\n  "documents": [\n${texts}\n  ]\n}`;
}

/** Quotes a word for a shell where it needs quotes. */
const word = (text) => (/^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

const lines = (...parts) => parts.filter(Boolean).join(" \\\n  ");

function curl({ message, url, token }) {
  const header = token && `-H @<(echo "Authorization: Bearer $RERANK_TOKEN")`;
  const command = lines(`curl -sS ${word(url + PATH)}`, "-H 'Content-Type: application/json'", header, "--data-binary @-");
  return hereDocument(command, message);
}

function buf({ message, target, secure, token }) {
  const header = token && `-H @<(echo "Authorization: Bearer $RERANK_TOKEN") --reflect-header '*'`;
  const url = `${secure ? "https" : "http"}://${target}/${PATH}`;
  return hereDocument(lines("buf curl --protocol grpc", header, `-d @- ${word(url)}`), message);
}

function grpcurl({ message, target, secure, token }) {
  const header = token && `-expand-headers -H 'authorization: Bearer \${RERANK_TOKEN}'`;
  const command = lines(`grpcurl${secure ? "" : " -plaintext"}`, header, `-d @ ${word(target)} ${PATH}`);
  return hereDocument(command, message);
}

// JSON's texts are Python's too, once they hold no half of a character.
const literal = (value) => escaped(JSON.stringify(value));

function python({ message, target, secure, token }) {
  const { query, documents, ...options } = message;
  const bare = documents.every(({ id }) => id === undefined);
  const document = ({ text, id }) => (id === undefined ? literal(text) : `Document(${literal(text)}, id=${literal(id)})`);
  const named = Object.entries(options).map(([name, value]) => {
    const snake = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    return `, ${snake}=${literal(value)}`;
  });
  const client = [literal(target), token && `token=os.environ["RERANK_TOKEN"]`, secure && "tls=True"].filter(Boolean);
  return [
    ...(token ? ["import os", ""] : []),
    `from rerank_grpc.client import Client${bare ? "" : ", Document"}`,
    "",
    `query = ${literal(query)}`,
    "documents = [",
    ...documents.map((each) => `    ${document(each)},`),
    "]",
    `with Client(${client.join(", ")}) as client:`,
    `    for result in client.rerank(query, documents${named.join("")}).results:`,
    `        print(f"{result.relevance_score:.6f} {result.index}")`,
    "",
  ].join("\n");
}
