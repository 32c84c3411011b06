"""A line of text under a node while it runs."""


def tell_under(node_id: str | None, text: str) -> None:
    """node_id: None outside of a server's run, where nobody listens."""
    if node_id is not None:
        from server import PromptServer    # with much behind it, which is there when a server runs
        PromptServer.instance.send_progress_text(text, node_id)
