"""What a browser posts of a form, read from its HTML with the standard library."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

Attributes = dict[str, str]


@dataclass
class Page(HTMLParser):
    """The controls of a page. `posted` is what a browser sends if no button was pressed."""

    posted: list[tuple[str, str]] = field(default_factory=list)
    tags: list[tuple[str, Attributes]] = field(default_factory=list)
    tree: list[tuple[str, Attributes]] = field(default_factory=list)
    """Tags as they come; an end tag is the name with a slash."""
    text: str = ""
    _select: Attributes | None = None
    _options: list[tuple[Attributes, str]] = field(default_factory=list)
    _area: str | None = None
    _area_name: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        self.tree.append((tag, given))
        if tag == "input":
            kind = given.get("type", "text")
            if kind in ("text", "number", "hidden"):
                # An input has one line.
                self.posted.append((given["name"], given.get("value", "").replace("\n", "").replace("\r", "")))
            elif kind == "checkbox" and "checked" in given:
                self.posted.append((given["name"], given.get("value", "on")))
        elif tag == "textarea":
            self._area, self._area_name = "", given["name"]
        elif tag == "select":
            self._select, self._options = given, []
        elif tag == "option" and self._select is not None:
            self._options.append((given, given.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        self.tree.append((f"/{tag}", {}))
        if tag == "textarea" and self._area is not None:
            text = self._area.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\n")
            self.posted.append((self._area_name, text.replace("\n", "\r\n")))
            self._area = None
        elif tag == "select" and self._select is not None:
            chosen = [value for given, value in self._options if "selected" in given]
            self.posted.append((self._select["name"], (chosen or [self._options[0][1]])[-1]))
            self._select = None

    def handle_data(self, data: str) -> None:
        if self._area is not None:
            self._area += data
        else:
            self.text += data

    def with_id(self, name: str) -> Attributes:
        """The attributes of the tag with an id; they are empty if the page has none."""
        return next((given for _, given in self.tags if given.get("id") == name), {})


def page(html: str) -> Page:
    """The page of a text."""
    found = Page()
    found.feed(html)
    found.close()
    return found
