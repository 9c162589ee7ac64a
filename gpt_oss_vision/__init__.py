"""GPT-OSS-Vision in the classes of Hugging Face transformers; importing this registers them with its Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from gpt_oss_vision.configuration import GPTOSSVisionConfig
from gpt_oss_vision.modeling import GPTOSSVisionForCausalLM, GPTOSSVisionModel, GPTOSSVisionPreTrainedModel
from gpt_oss_vision.processing import GPTOSSVisionImageProcessor, GPTOSSVisionProcessor, GPTOSSVisionTokenizer

AutoConfig.register(GPTOSSVisionConfig.model_type, GPTOSSVisionConfig)
AutoModel.register(GPTOSSVisionConfig, GPTOSSVisionModel)
AutoModelForCausalLM.register(GPTOSSVisionConfig, GPTOSSVisionForCausalLM)
AutoModelForImageTextToText.register(GPTOSSVisionConfig, GPTOSSVisionForCausalLM)
AutoImageProcessor.register(GPTOSSVisionConfig, image_processor_classes={"pil": GPTOSSVisionImageProcessor})
AutoTokenizer.register(GPTOSSVisionConfig, tokenizer_class=GPTOSSVisionTokenizer)
AutoProcessor.register(GPTOSSVisionConfig, GPTOSSVisionProcessor)

__all__ = [
    "GPTOSSVisionConfig",
    "GPTOSSVisionForCausalLM",
    "GPTOSSVisionImageProcessor",
    "GPTOSSVisionModel",
    "GPTOSSVisionPreTrainedModel",
    "GPTOSSVisionProcessor",
    "GPTOSSVisionTokenizer",
]
