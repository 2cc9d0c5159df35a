"""Checks every example of an OpenAPI description, given by its path, against the schema beside it. Prints how many
there were and fails if one is not what its schema says."""

import json
import sys

import jsonschema_rs

with open(sys.argv[1], encoding="utf-8") as file:
    description = json.load(file)
components = description["components"]
checked = 0
wrong = []


def check(where, holder):
    """`holder` is a media type, a parameter or a header."""
    global checked
    schema = {"allOf": [holder["schema"]], "components": components}
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    examples = [holder["example"]] if "example" in holder else []
    for example in holder.get("examples", {}).values():
        if "$ref" in example:
            example = components["examples"][example["$ref"].rpartition("/")[2]]
        examples.append(example["value"])
    for example in examples:
        checked += 1
        wrong.extend(f"{where}: {error.message}" for error in validator.iter_errors(example))


def walk(where, value):
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return
    if "schema" in value and ("example" in value or "examples" in value):
        check(where, value)
    for name, part in value.items():
        # What stands in a schema or an example is no part of the description's own structure.
        if name not in ("schema", "schemas", "example", "examples"):
            walk(f"{where}/{name}", part)


walk("#", description)
print(checked)
if wrong:
    sys.exit("\n".join(wrong))
