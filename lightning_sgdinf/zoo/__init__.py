"""Data sets and models of the experiments. Nothing else in the package imports this."""

from lightning_sgdinf.zoo.adult import Adult as Adult
from lightning_sgdinf.zoo.binary import BinaryData as BinaryData
from lightning_sgdinf.zoo.binary import BinaryDataset as BinaryDataset
from lightning_sgdinf.zoo.binary import BinaryExamples as BinaryExamples
from lightning_sgdinf.zoo.binary import BinarySource as BinarySource
from lightning_sgdinf.zoo.binary import EpochOrder as EpochOrder
from lightning_sgdinf.zoo.classifier import Classifier as Classifier
from lightning_sgdinf.zoo.data import ImageData as ImageData
from lightning_sgdinf.zoo.data import ImageDataset as ImageDataset
from lightning_sgdinf.zoo.digit_pair import DigitPair as DigitPair
from lightning_sgdinf.zoo.digits import Digits as Digits
from lightning_sgdinf.zoo.idx import read_idx as read_idx
from lightning_sgdinf.zoo.images import ImageSource as ImageSource
from lightning_sgdinf.zoo.images import LabelledImages as LabelledImages
from lightning_sgdinf.zoo.label_noise import NoisyLabels as NoisyLabels
from lightning_sgdinf.zoo.label_noise import flip_labels as flip_labels
from lightning_sgdinf.zoo.mnist import Mnist as Mnist
from lightning_sgdinf.zoo.networks import cifar_net as cifar_net
from lightning_sgdinf.zoo.networks import logistic_regression as logistic_regression
from lightning_sgdinf.zoo.networks import mlp as mlp
from lightning_sgdinf.zoo.networks import mnist_net as mnist_net
from lightning_sgdinf.zoo.networks import small_cnn as small_cnn
from lightning_sgdinf.zoo.newsgroups import NewsHardware as NewsHardware
from lightning_sgdinf.zoo.penalised import PenalisedClassifier as PenalisedClassifier
from lightning_sgdinf.zoo.penalised import cross_validated_penalty as cross_validated_penalty
from lightning_sgdinf.zoo.splits import split_ids as split_ids
