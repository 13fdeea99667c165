"""What is wrong with the descriptions of a store and of its log, and with its keys; and how that is mended."""

from __future__ import annotations

import os

from ingest.runtime.durable_files import sync_directory
from ingest.store.check.examination import Examination
from ingest.store.check.findings import Problem
from ingest.store.check.identity import STORE_JSON
from ingest.store.data_dir import LOG_ID_FILE, META
from ingest.store.store_json import write_json, write_store_json


class IdentityRepair:
    """Of `store.json`, `log.json` and the key file."""

    def __init__(self, examination: Examination) -> None:
        self._exam = examination

    def tell(self) -> None:
        identity = self._exam.identity
        key_path = f"{META}/key"
        if identity.key_problem:
            self._operator(key_path, f"{identity.key_problem}: nothing can be verified; put the file back")
        elif identity.missing and self._exam.unverified:
            self._operator(
                key_path,
                f"lacks the key {', '.join(identity.missing)} that signed here: {self._exam.unverified} frames or headers "
                "can't be judged; put it back behind the others",
            )
        elif identity.missing and self._exam.survey.faults:
            self._operator(
                key_path,
                f"lacks the key {', '.join(identity.missing)}, which may have signed what can't be read of the log; "
                "put it back behind the others",
            )
        elif identity.missing:
            lacking = ", ".join(identity.missing)
            identity.record["keys"] = [key for key in identity.record["keys"] if key not in identity.missing]
            identity.record["keys"] += [
                keys.id for keys in identity.keys[:2] if keys.id not in identity.record["keys"]
            ]
            identity.mend_record(
                f"names the key {lacking}, which is not in the key file and signed nothing that is here"
            )
        self._exam.report.problems += identity.problems

    def _operator(self, path: str, detail: str) -> None:
        self._exam.report.problems.append(Problem("key", path, detail))

    def mend(self) -> None:
        identity = self._exam.identity
        for problem in identity.problems:
            path = self._exam.data_dir / problem.path
            if os.path.lexists(path):
                quarantine = self._exam.quarantine
                # A directory can't be replaced by a file.
                put_aside = (
                    quarantine.take if path.is_symlink() or not path.is_file() else quarantine.keep_file
                )
                problem.copy = put_aside(problem.path, path, problem.kind, problem.detail)
        if identity.write_record:
            write_store_json(self._exam.data_dir / STORE_JSON, identity.record)
        if identity.write_log_id:
            made_for = str(self._exam.data_dir.resolve())
            write_json(
                identity.wal_dir / LOG_ID_FILE, {"log_id": identity.record["log_id"], "made_for": made_for}
            )
        for problem in identity.problems:
            problem.repaired = True
        sync_directory(self._exam.data_dir)
