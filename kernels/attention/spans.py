"""Which tokens of a pass belong to which sequence, and where its keys and values lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tersor.kernels.errors import LayoutError


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One sequence's part in a forward pass.

    Token `t` of the sequence lies in page `pages[t // page_tokens]` at `t % page_tokens`. The pass
    holds its tokens `context - queries` … `context - 1`.
    """

    pages: Sequence[int]
    queries: int  # tokens of this pass
    context: int  # tokens in the cache once this pass has stored its own
    contiguous: bool = False  # the caller knows that `pages` are consecutive numbers, ascending

    @property
    def start(self) -> int:
        """Position of the first token of this pass."""
        return self.context - self.queries


def check_spans(spans: Sequence[Span], page_tokens: int) -> None:
    """Raises LayoutError for a span that is empty or longer than its pages."""
    for index, span in enumerate(spans):
        if not 0 < span.queries <= span.context:
            raise LayoutError(
                f"span {index} has {span.queries} queries and {span.context} tokens of context; "
                "expected at least one query, and all of them within the context"
            )
        if span.context > len(span.pages) * page_tokens:
            raise LayoutError(
                f"span {index} has {span.context} tokens of context in {len(span.pages)} pages of "
                f"{page_tokens} tokens; allocate pages before the pass"
            )
