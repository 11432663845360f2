"""Off-policy estimators: one method, one file."""

if __name__ != "ope.estimators":
    raise ImportError(f"import this package as ope.estimators, not {__name__}")

from ope.estimators.average_reward import AverageRewardLSTDQ
from ope.estimators.bellman_calibrated import BellmanCalibrated
from ope.estimators.bellman_error import CalibrationError as CalibrationError
from ope.estimators.bellman_error import calibration_error as calibration_error
from ope.estimators.coin_dice import CoinDICE
from ope.estimators.coin_dice import CoinDICEInterval as CoinDICEInterval
from ope.estimators.control_variate_is import ControlVariateIS
from ope.estimators.cop_td import COPTD
from ope.estimators.default import Choice as Choice
from ope.estimators.default import DefaultEstimator
from ope.estimators.default import default as default
from ope.estimators.dice import DICE
from ope.estimators.dice import NeuralFunctions as NeuralFunctions
from ope.estimators.double_rl import DoubleReinforcementLearning
from ope.estimators.doubly_robust import DoublyRobust
from ope.estimators.efficient_dr import EfficientDoublyRobust
from ope.estimators.fitted_q import FittedQEvaluation
from ope.estimators.given_q import GivenQ
from ope.estimators.gradient_dice import GradientDICE
from ope.estimators.importance_sampling import ImportanceSampling, PerDecisionIS, TrajectoryIS, WeightedIS
from ope.estimators.incremental_is import IncrementalIS
from ope.estimators.kernel_is import KernelIS
from ope.estimators.lepski import LepskiEstimator
from ope.estimators.linear_gaussian import LinearGaussianModel
from ope.estimators.lstd import LSTD
from ope.estimators.lstdq import LSTDQ
from ope.estimators.magic import MAGIC
from ope.estimators.marginalized_is import MarginalizedIS
from ope.estimators.minimax_q import MinimaxQLearning
from ope.estimators.minimax_weight import MinimaxWeightLearning
from ope.estimators.model_based import ModelBased
from ope.estimators.model_ensemble import ModelEnsemble
from ope.estimators.neural_fqe import NeuralFittedQEvaluation
from ope.estimators.simulator_q import SimulatorQ
from ope.estimators.stacked_q import StackedQ
from ope.estimators.state_marginal_is import StateMarginalIS
from ope.estimators.tournament import q_tournament as q_tournament

__all__ = [
    "COPTD",
    "DICE",
    "LSTD",
    "LSTDQ",
    "MAGIC",
    "AverageRewardLSTDQ",
    "BellmanCalibrated",
    "CoinDICE",
    "ControlVariateIS",
    "DefaultEstimator",
    "DoubleReinforcementLearning",
    "DoublyRobust",
    "EfficientDoublyRobust",
    "FittedQEvaluation",
    "GivenQ",
    "GradientDICE",
    "ImportanceSampling",
    "IncrementalIS",
    "KernelIS",
    "LepskiEstimator",
    "LinearGaussianModel",
    "MarginalizedIS",
    "MinimaxQLearning",
    "MinimaxWeightLearning",
    "ModelBased",
    "ModelEnsemble",
    "NeuralFittedQEvaluation",
    "PerDecisionIS",
    "SimulatorQ",
    "StackedQ",
    "StateMarginalIS",
    "TrajectoryIS",
    "WeightedIS",
]
