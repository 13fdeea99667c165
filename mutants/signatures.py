"""Mutants of signatures and rights that cover less than they should."""

from __future__ import annotations

from mutants.mutant import Edit, Mutant

SIGNED = "tests/test_signed_whole.py::"
LINKS = "ingest/gateway/http/download_links.py"
FIELDS = "msgspec.json.encode([namespace, name, until])"

MUTANTS = (
    Mutant(
        "link-opens-other-namespaces",
        "a link to an object opens the same name in every namespace",
        (Edit(LINKS, FIELDS, "msgspec.json.encode([name, until])"),),
        (SIGNED + "test_a_link_opens_what_it_was_made_for_and_nothing_else",),
    ),
    Mutant(
        "link-opens-other-names",
        "a link to an object opens all that its namespace has",
        (Edit(LINKS, FIELDS, "msgspec.json.encode([namespace, until])"),),
        (SIGNED + "test_a_link_opens_what_it_was_made_for_and_nothing_else",),
    ),
    Mutant(
        "link-of-any-time",
        "whoever has a link lets it live as long as he likes",
        (Edit(LINKS, FIELDS, "msgspec.json.encode([namespace, name])"),),
        (SIGNED + "test_each_part_of_a_link_is_signed",),
    ),
    Mutant(
        "parts-of-a-link-run-together",
        "a link opens another object whose namespace and name make the same text",
        (Edit(LINKS, FIELDS, "(namespace + name + until).encode()"),),
        (SIGNED + "test_parts_do_not_run_into_each_other",),
    ),
    Mutant(
        "link-lives-for-ever",
        "a link has no end",
        (Edit(LINKS, "if int(until) < self._clock():", "if int(until) < 0:"),),
        (SIGNED + "test_a_link_has_its_time_and_not_a_second_more",),
    ),
    Mutant(
        "link-with-more-in-it",
        "a link may say more than its signature covers",
        (Edit(LINKS, "if query.keys() != PARAMETERS:", "if not query.keys() >= PARAMETERS:"),),
        (SIGNED + "test_each_part_of_a_link_is_signed",),
    ),
    Mutant(
        "token-for-reading-changes-things",
        "a token for reading is good for everything",
        (
            Edit(
                "ingest/gateway/http/access.py",
                "if changes and not may_change:",
                "if changes and may_change is None:",
            ),
        ),
        (SIGNED + "test_a_token_is_good_for_what_it_says",),
    ),
    Mutant(
        "manifest-signed-in-part",
        "a manifest counts whose signature fits in its first half alone",
        (
            Edit(
                "ingest/objects/manifest.py",
                "hmac.compare_digest(checksum, _checksum(key, place, chunks, text))",
                "hmac.compare_digest(checksum[:16], _checksum(key, place, chunks, text)[:16])",
            ),
        ),
        (SIGNED + "test_a_manifest_is_bound_to_its_key_its_place_and_each_byte",),
    ),
    Mutant(
        "check-of-a-store-without-its-id",
        "a bit that flips in store.json makes it another store",
        (
            Edit(
                "ingest/store/store_json.py",
                "for name, value in record.items() if name != CHECK}\n    return blake3",
                'for name, value in record.items() if name not in (CHECK, "store_id")}\n    return blake3',
            ),
        ),
        (SIGNED + "test_the_check_of_a_store_covers_each_member",),
    ),
)
