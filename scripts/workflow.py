"""Turns a workflow as the ComfyUI frontend saves it into the prompt that its server runs. Standard library only.

The frontend stores a node's widget values by position; the server wants every input by name.  The server's
`/object_info` gives the names and their order.  Covers what our workflows use: links, muted and bypassed nodes, notes,
dynamic combos, and the value that seed widgets add.  No subgraphs or reroutes.
"""

NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """{node id: {"class_type", "inputs"}} for `POST /prompt`.

    Raises KeyError for a node type that the server does not know, ValueError for a value that it does not offer.
    """
    links = sources(workflow)
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise KeyError(f"this ComfyUI has no node {node['type']}")
        inputs = widget_inputs(object_info[node["type"]]["input"], node.get("widgets_values", []))
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                inputs[slot["name"]] = links[slot["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def sources(workflow: dict) -> dict[int, list]:
    """Link id -> [node id, output slot] that its value comes from; bypassed nodes hand on their input of that type."""
    # link: [id, from node, from slot, to node, to slot, type]
    links = {link[0]: link for link in workflow["links"]}
    bypassed = {node["id"]: node for node in workflow["nodes"] if node.get("mode", 0) == BYPASSED}

    def source(number: int) -> list:
        _, node, slot, _, _, kind = links[number]
        if node not in bypassed:
            return [str(node), slot]
        return source(next(part["link"] for part in bypassed[node]["inputs"] if part["type"] == kind))
    return {number: source(number) for number in links}


def widget_inputs(definition: dict, values: list) -> dict:
    """Names for the values of a node's widgets, in the order in which the frontend builds them."""
    inputs, rest = {}, list(values)
    take_widgets(definition, "", rest, inputs)
    return inputs


def take_widgets(definition: dict, prefix: str, rest: list, inputs: dict) -> None:
    for section in ("required", "optional"):
        for name, (kind, *options) in definition.get(section, {}).items():
            options = options[0] if options else {}
            if not is_widget(kind, options) or not (rest or "default" in options):
                continue
            # Widgets that came after the workflow was saved have their default.
            inputs[prefix + name] = value = rest.pop(0) if rest else options["default"]
            if kind == "COMFY_DYNAMICCOMBO_V3":
                take_widgets(chosen(options["options"], value, prefix + name), f"{prefix}{name}.", rest, inputs)
            elif kind == "INT" and options.get("control_after_generate", name in ("seed", "noise_seed")):
                rest.pop(0)  # "fixed", "randomize", ...: the frontend's own


def is_widget(kind, options: dict) -> bool:
    """Whether the frontend draws a widget; the first part of a definition is a type name or a list of choices."""
    return isinstance(kind, list) or (kind in WIDGET_TYPES and not options.get("forceInput"))


def chosen(options: list, key: str, name: str) -> dict:
    for option in options:
        if option["key"] == key:
            return option["inputs"]
    raise ValueError(f"{name} has no choice {key!r}: the widget values and the node definition are out of step")
