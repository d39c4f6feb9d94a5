"""`lifecycle data fetch`: the pages of a list of addresses, as a folder that is then a source."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from lifecycle.cli.arguments import AsJson
from lifecycle.cli.display import in_line, print_json
from lifecycle.cli.outputs import takes_folder
from lifecycle.cli.terminal import terminal
from lifecycle.core.config import ConfigError

DAY_S = 86_400

type List = Annotated[Path, Parameter(help="A file of addresses, one a line.")]
type Into = Annotated[
    Path, Parameter(help="The folder of the pages; one that is begun is gone on with.", validator=takes_folder)
]
type Contact = Annotated[
    str, Parameter(help="Your address on the web or by mail: servers are told it, so that their owners can reach you.")
]
type Delay = Annotated[
    float,
    Parameter(help="Seconds between requests to a server, which may ask for more.", validator=Number(gte=0, lte=DAY_S)),
]
type Servers = Annotated[int, Parameter(help="Asked at a time, with one request each.", validator=Number(gte=1))]
type MaxBytes = Annotated[int, Parameter(help="Of a page; a larger one has failed.", validator=Number(gte=1))]
type Seconds = Annotated[float, Parameter(help="Of a whole answer, in seconds.", validator=Number(gt=0, lte=DAY_S))]
type Private = Annotated[bool, Parameter(help="Ask addresses of this machine and of private networks, too.")]
type Again = Annotated[bool, Parameter(help="Ask whether the pages that are here have changed; new ones are added.")]


def fetch(
    urls: List, /, *, into: Into, contact: Contact, delay: Delay = 1.0, servers: Servers = 8,
    max_bytes: MaxBytes = 5_000_000, answer_s: Seconds = 60.0, private: Private = False, again: Again = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Fetches the pages of a list into WARC files, as robots.txt files allow it, and says what became of each address.

    Pages that are there are not asked for again, so a run that was ended goes on; what has failed is tried again.
    """
    from lifecycle.data.collecting.archive import Entry
    from lifecycle.data.collecting.fetching import fetch_list, read_list
    from lifecycle.data.collecting.requests import Manners

    if "@" not in contact and "://" not in contact:
        raise ConfigError(f"--contact {contact}: neither an address on the web nor a mail address")
    if not urls.is_file():
        raise ConfigError(f"{urls}: no such file; it has an address on each line")
    console = terminal(stderr=True)
    manners = Manners(contact, delay, servers, max_bytes, answer_s, private=private)

    def tell(url: str, entry: Entry) -> None:
        """Prints what was not fetched."""
        if entry.outcome != "fetched":
            line = in_line(f"{entry.outcome}: {entry.reason}: {url}")
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    found = fetch_list(read_list(urls), into, manners, again, tell)
    if as_json:
        print_json(asdict(found))
        return
    failed = ", ".join(f"{reason} {number:,}" for reason, number in sorted(found.failed.items()))
    print(f"{found.addresses:,} addresses, {found.doubled:,} of them twice")
    print(f"{found.fetched:,} pages, {found.unchanged:,} unchanged")
    print(f"{found.refused:,} refused by robots.txt, {found.failed.total():,} failed{f': {failed}' if failed else ''}")
    print(into)
