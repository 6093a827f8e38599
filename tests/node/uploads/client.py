"""One upload by tuspy with a checksum on every chunk, for the tests: client.py ENDPOINT FILE KEY

Prints "url ADDRESS" once, "head ADDRESS OFFSET" for every offset it was told, then "done".
"""

import sys
import time

from tusclient import client
from tusclient.exceptions import TusCommunicationError
from tusclient.uploader import Uploader

endpoint, path, key = sys.argv[1:4]


class Told(Uploader):
    def get_offset(self):
        offset = super().get_offset()
        print("head", self.url, offset, flush=True)
        return offset


def begin():
    for attempt in range(600):
        uploader = Told(
            file_path=path,
            client=client.TusClient(endpoint),
            chunk_size=300_007,
            metadata={"key": key, "filename": "film.mp4"},
            retries=600,
            retry_delay=0.04,
            upload_checksum=True,
        )
        try:
            uploader.set_url(uploader.create_url())
            return uploader
        except TusCommunicationError:
            time.sleep(0.04)
    sys.exit("the upload could not be begun")


uploader = begin()
print("url", uploader.url, flush=True)
uploader.upload()
print("done", flush=True)
