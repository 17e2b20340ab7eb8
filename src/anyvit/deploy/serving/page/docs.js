// The API, drawn from /openapi.json: one article an operation. What the file says goes in as text, never as markup.

const METHODS = ['get', 'post', 'put', 'patch', 'delete'];
const $ = (id) => document.getElementById(id);

function make(tag, text = '', name = '') {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = name;
  return node;
}

let api = {};

// {"$ref": "#/components/schemas/Answer"} stands for what lies there.
function resolve(thing) {
  if (!thing?.$ref) return thing ?? {};
  const keys = thing.$ref.split('/').slice(1);
  return resolve(keys.reduce((node, key) => node?.[key.replaceAll('~1', '/').replaceAll('~0', '~')], api));
}

function typeOf(given) {
  const schema = resolve(given);
  const any = schema.anyOf ?? schema.oneOf;
  if (any) return any.map(typeOf).join(' or ');
  if (schema.enum) return schema.enum.join(', ');
  if (schema.type === 'array') return `${typeOf(schema.items)}, any number of them`;
  return [schema.type ?? 'any', schema.format].filter(Boolean).join(', ');
}

// Rows of [name, quiet remark, text]; nothing where there are none.
function table(title, rows) {
  if (!rows.length) return [];
  const body = make('tbody');
  for (const [name, remark, text] of rows) {
    const row = make('tr');
    const head = make('th');
    head.scope = 'row';
    head.append(make('code', name), document.createElement('br'), make('span', remark, 'quiet'));
    row.append(head, make('td', text, 'prose'));
    body.append(row);
  }
  const whole = make('table');
  whole.append(body);
  return [make('h3', title), whole];
}

function parameterRow(given) {
  const { name, in: place, required, schema, description = '' } = resolve(given);
  const preset = resolve(schema).default ?? '';
  const remarks = [place, typeOf(schema), required && 'required', preset !== '' && `default ${preset}`];
  return [name, remarks.filter(Boolean).join(', '), description];
}

function bodyRow([type, { schema }]) {
  const { properties = {}, required = [], description = '' } = resolve(schema);
  const fields = Object.entries(properties).map(([name, given]) => {
    const { description: about } = resolve(given);
    return `${name} (${typeOf(given)}${required.includes(name) ? ', required' : ''})${about ? `: ${about}` : ''}`;
  });
  return [type, '', [description, ...fields].filter(Boolean).join('\n')];
}

function responseRow([status, given]) {
  const { description = '', content = {} } = resolve(given);
  return [status, Object.keys(content).join(', '), description];
}

const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function exampleOf({ example, examples, schema }) {
  const { example: older, examples: newer, properties = {} } = resolve(schema);
  const named = Object.values(examples ?? {})[0]?.value;
  const first = example ?? named ?? newer?.[0] ?? older;
  if (first !== undefined) return first;
  const required = resolve(schema).required ?? Object.keys(properties).slice(0, 1);
  return Object.fromEntries(required.map((name) => [name, resolve(properties[name]).examples?.[0] ?? '...']));
}

// What to send of each type, in curl's words; a file is an image throughout this API.
function dataOf(type, media) {
  if (type === 'multipart/form-data') return '-F image=@cat.jpg';
  if (type.endsWith('json')) return `-H 'Content-Type: application/json' -d ${quote(JSON.stringify(exampleOf(media)))}`;
  return `-H ${quote(`Content-Type: ${type.replace('image/*', 'image/jpeg')}`)} --data-binary @cat.jpg`;
}

function curls(method, path, bodies) {
  const verb = method === (bodies.length ? 'post' : 'get') ? '' : ` -X ${method.toUpperCase()}`;
  const url = quote(location.origin + path);
  if (!bodies.length) return `curl${verb} ${url}`;
  return bodies.map(([type, media]) => `curl${verb} ${dataOf(type, media)} ${url}`).join('\n');
}

function article(path, shared, method, operation) {
  const box = make('article');
  const head = make('h2');
  head.append(make('b', method.toUpperCase()), ' ', path);
  const bodies = Object.entries(resolve(operation.requestBody).content ?? {});
  const { summary = '', description = '', parameters = [], responses = {} } = operation;
  box.append(head, make('p', summary), make('p', description, 'prose quiet'));
  box.append(...table('Parameters', [...shared, ...parameters].map(parameterRow)));
  box.append(...table('Body, one of', bodies.map(bodyRow)));
  box.append(...table('Answers', Object.entries(responses).map(responseRow)));
  box.append(make('h3', 'For example'), make('pre', curls(method, path, bodies)));
  return box;
}

try {
  const response = await fetch('/openapi.json');
  if (!response.ok) throw new Error(`The server answered with status ${response.status}.`);
  api = await response.json();
  const { title = 'The API', version = '', description = '' } = api.info ?? {};
  $('title').textContent = [title, version].filter(Boolean).join(' ');
  $('about').textContent = description;
  for (const [path, item] of Object.entries(api.paths ?? {})) {
    for (const method of METHODS.filter((one) => item[one])) {
      $('operations').append(article(path, item.parameters ?? [], method, item[method]));
    }
  }
} catch (error) {
  $('trouble').append(make('p', '/openapi.json cannot be read.'), make('p', error.message));
  $('trouble').hidden = false;
}
$('operations').ariaBusy = 'false';
