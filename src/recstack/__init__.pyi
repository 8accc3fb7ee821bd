from . import bundle as bundle
from . import calibration as calibration
from . import index as index
from . import losses as losses
from . import metrics as metrics
from . import rules as rules
from . import testing as testing
from .candidates import Candidates as Candidates
from .cascade import Cascade as Cascade
from .data import Columns as Columns
from .data import Encoder as Encoder
from .data import Loader as Loader
from .data import Log as Log
from .data import Profiles as Profiles
from .data import Requests as Requests
from .data import WindowCounter as WindowCounter
from .data import datasets as datasets
from .data import prepare as prepare
from .data import simulator as simulator
from .data import splits as split
from .data.readers import read as read
from .errors import BundleError as BundleError
from .errors import ConfigError as ConfigError
from .errors import DataError as DataError
from .errors import RecStackError as RecStackError
from .errors import RequestError as RequestError
from .errors import SchemaError as SchemaError
from .errors import TrainingError as TrainingError
from .models import multidomain as multidomain
from .models import multitask as multitask
from .models import pre_ranking as pre_ranking
from .models import ranking as ranking
from .models import reranking as reranking
from .models import retrieval as retrieval
from .models.base import load as load
from .models.profiles import ProfileEncoder as ProfileEncoder
from .schema import Categorical as Categorical
from .schema import History as History
from .schema import Numeric as Numeric
from .schema import Schema as Schema
from .schema import Task as Task
from .schema import Text as Text
from .schema import Vector as Vector
from .training import Trainer as Trainer

__version__: str

__all__ = ["split"]  # a renamed import counts as public only if it is said; the others are "X as X"
