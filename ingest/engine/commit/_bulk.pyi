class BulkJob:
    number: int
    frames: int
    error: int
    def run(self) -> None: ...
