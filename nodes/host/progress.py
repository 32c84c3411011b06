"""A line of text under a node while it runs."""

from server import PromptServer


def tell_under(node_id: str | None, text: str) -> None:
    """node_id: None outside of a server's run, where nobody listens."""
    if node_id is not None:
        PromptServer.instance.send_progress_text(text, node_id)
